"""A tree of a JAX library as the table of tensors that a PEFT file would be.

Factors are given as PEFT has them, ``lora_A.weight [r, n]`` and ``lora_B.weight
[m, r]``, so that a tree is planned, merged and verified like any folder.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from jaxmerge.io.bridges.alphas import alphas_of
from jaxmerge.io.bridges.keras import KerasFile, keras_file
from jaxmerge.io.bridges.pairs import Pair, TreePath, find_pairs
from jaxmerge.io.bridges.table import BRIDGES, OF_QWIX, told
from jaxmerge.io.bridges.trees import (
    PARAMETERS,
    OrbaxTree,
    StoredTree,
    Tree,
    tree_folder,
)
from jaxmerge.io.config import AdapterConfig
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.files import CONFIG_FILE, read_object
from jaxmerge.io.formats import RECORD_FILE, format_of
from jaxmerge.io.keys import KeyTable
from jaxmerge.io.options import Alpha, BridgeName, ReadOptions, checked_alphas
from jaxmerge.io.tensors import TensorFile, TensorInfo
from jaxmerge.refusals import Option

Part = Literal["A", "B"]


class TreeTensors:
    """The factors of a tree under the names that PEFT would give them.

    Attributes:
      path: where the tree is.
      files: files of which it consists.
      bridge: whose tree it is.
      pairs: what its arrays are.
      infos: key -> dtype and shape of a factor as a matrix.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, tree: Tree, bridge: BridgeName, pairs: tuple[Pair, ...]):
        self.path, self.files = tree.path, tree.files
        self.tree, self.bridge, self.pairs = tree, bridge, pairs
        self._places: dict[str, tuple[Pair, int, int, Part]] = {}
        self._arrays: dict[TreePath, np.ndarray] | None = None
        self.infos: dict[str, TensorInfo] = {}
        for pair in pairs:
            m, n = pair.shape
            shapes = {"A": (pair.rank, n), "B": (m, pair.rank)}
            for layer, names in enumerate(pair.layers):
                for place, name in enumerate(names):
                    for part, path in _parts(pair):
                        key = f"{name}.lora_{part}.weight"
                        dtype = tree.infos[path].dtype
                        self._places[key] = (pair, layer, place, part)
                        self.infos[key] = TensorInfo(dtype, shapes[part])

    def holder(self, _key: str, /) -> TensorFile:
        """The file that holds a tensor."""
        return self

    def read(self, key: str) -> np.ndarray:
        """The values of one factor; the first call reads all of them."""
        if self._arrays is None:
            wanted = [path for pair in self.pairs for path in (pair.a, pair.b)]
            self._arrays = self.tree.read(wanted)
        pair, layer, place, part = self._places[key]
        if part == "A":
            return pair.factor_a(self._arrays[pair.a], layer)
        return pair.factor_b(self._arrays[pair.b], layer, place)


def _parts(pair: Pair) -> tuple[tuple[Part, TreePath], ...]:
    return ("A", pair.a), ("B", pair.b)


def is_tree(folder: Path) -> bool:
    """Whether a place is a checkpoint of orbax or a file of Keras, and none of PEFT."""
    if os.path.lexists(folder / CONFIG_FILE) or format_of(folder) is not None:
        return False
    return keras_file(folder) is not None or tree_folder(folder) is not None


def stored_tree(place: Path) -> StoredTree:
    """The tree of a checkpoint, or of a file of Keras."""
    return OrbaxTree(place) if keras_file(place) is None else KerasFile(place)


def check_has_trees(places: Iterable[Path], options: ReadOptions) -> None:
    """AdapterError if options of trees are given and there is none to which they apply.

    Every other kind of adapter holds its own alpha.
    """
    given = {
        "lora_alpha": options.lora_alpha is not None,
        "scan_axis": options.scan_axis is not None,
        "layout": options.layout in BRIDGES,
    }
    useless = [name for name, is_given in given.items() if is_given]
    if useless and not any(map(is_tree, places)):
        raise AdapterError(
            Option(useless[0]),
            " is for checkpoints of JAX libraries, and none of the inputs is one; "
            "leave it out. The alpha of an adapter whose config has none is ",
            Option("assume_alpha"),
        )


def open_folder(
    folder: Path, options: ReadOptions
) -> tuple[AdapterConfig, TensorFile, KeyTable]:
    """Opens a checkpoint that a JAX library saved."""
    record = folder / RECORD_FILE
    alpha, said = options.lora_alpha, None
    if record.is_file():  # what this package wrote says it
        said = checked_alphas(
            read_object(record).get("lora_alpha"), f"{record}: lora_alpha"
        )
    known = alpha if said is None else said
    config, tensors, table = open_tree(stored_tree(folder), options, known)
    if alpha is not None and known != alpha:
        table.notes.append(f"read with the lora_alpha of its record, {known}")
    return config, tensors, table


def open_tree(
    tree: Tree, options: ReadOptions, alpha: Alpha | None, option: str = "lora_alpha"
) -> tuple[AdapterConfig, TreeTensors, KeyTable]:
    """Finds the factors of a tree and what they are multiplied with.

    Raises:
      AdapterError: no factors, those of several libraries, shapes that can be read in
        more than one way, or a module without alpha.
    """
    name = library_of(tree, options)
    bridge = BRIDGES[name]
    pairs = find_pairs(
        tree.infos,
        bridge.role,
        bridge.names,
        tree.path,
        matrices=bridge.matrices,
        scan_axis=options.scan_axis,
        heads=bridge.heads,
    )
    tensors = TreeTensors(tree, name, pairs)
    config = AdapterConfig(
        path=tree.path,
        raw={},
        peft_type="LORA",
        alpha=None,
        alphas=alphas_of(pairs, alpha, bridge, tree.path, option),
    )
    table = KeyTable(notes=list(_notes(tree, pairs)))
    for key in tensors.infos:
        module, _, part = key.removesuffix(".weight").rpartition(".lora_")
        table.modules.setdefault(module, {})[part] = key
    return config, tensors, table


def library_of(tree: Tree, options: ReadOptions) -> BridgeName:
    """The library whose factors a tree holds; AdapterError unless it is one."""
    found = told(tree.infos, by_tunix=tree.path.parent.name == PARAMETERS)
    if not found:
        paths = listing(map("/".join, tree.infos))
        raise AdapterError(
            f"{tree.path}: holds no LoRA factors of a JAX library that is known here "
            f"(flax nnx, qwix, tunix, gemma, Keras); it holds {paths or 'no arrays'}"
        )
    if len(found) > 1:
        says = " and ".join(BRIDGES[name].says for name in found)
        raise AdapterError(
            f"{tree.path}: holds factors of {says}, and one layer may be adapted by "
            "both; save them apart"
        )
    layout = options.layout
    if layout in (None, found[0]) or {layout, found[0]} <= {*OF_QWIX}:
        return found[0] if layout is None else _checked(layout)
    raise AdapterError(
        f"{tree.path}: is {BRIDGES[found[0]].says}, so leave ",
        Option("layout", str(layout), quoted=True),
        " out",
    )


def _checked(layout: str) -> BridgeName:
    return next(name for name in get_args(BridgeName) if name == layout)


def _notes(tree: Tree, pairs: Iterable[Pair]) -> Iterable[str]:
    factors = {path for pair in pairs for path in (pair.a, pair.b)}
    others = len(tree.infos.keys() - factors)
    if others:
        yield (
            f"left out {others} arrays of the tree that are no LoRA factors; if any of "
            "them was trained too, it is not part of a merge"
        )
    shared = [layer for pair in pairs for layer in pair.layers if len(layer) > 1]
    if shared:
        yield f"{len(shared)} arrays a are shared, by modules such as {shared[0]}"
