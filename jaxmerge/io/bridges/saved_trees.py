"""Adapters written as the checkpoint that a JAX library would have saved.

With the tree of a model the checkpoint has its arrays, its nesting and, where a
manager of orbax wrote it, its step and item. Alpha stands in ``jaxmerge.json`` beside
it, so that this package reads it back without being told; no library reads that file.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxmerge.folders import Folder
from jaxmerge.io.bridges.opened_tree import (
    is_tree,
    library_of,
    open_tree,
    stored_tree,
)
from jaxmerge.io.bridges.pairs import TreePath
from jaxmerge.io.bridges.table import BRIDGES
from jaxmerge.io.bridges.trees import StoredTree, as_there, save_arrays
from jaxmerge.io.bridges.trees_in_memory import factors_of, nested
from jaxmerge.io.bridges.weave import new_pairs, woven
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.factors import common_dtype
from jaxmerge.io.files import digests, read_object
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.options import (
    Alpha,
    BridgeName,
    ReadOptions,
    ScanAxis,
    checked_options,
)
from jaxmerge.io.staging import staged_folder

if TYPE_CHECKING:
    from jaxmerge.io.adapters import Adapters

FORMAT = "jaxmerge-tree-1"


class SavedTree(NamedTuple):
    """What was written: the ranks of the arrays, and their dtype."""

    ranks: tuple[int, ...]
    dtype: str


def save_tree(
    out: Folder,
    adapter: "Adapters",
    layout: BridgeName,
    *,
    like: Folder | None = None,
    alpha: Alpha | None = None,
    scan_axis: ScanAxis | None = None,
    rank: int | None = None,
    force: bool = False,
    inputs: Sequence[Folder] = (),
) -> SavedTree:
    """Writes one adapter as a checkpoint of a JAX library.

    Args:
      out: folder to create.
      adapter: one task.
      layout: the library.
      like: a checkpoint of the model: its other arrays and its dtypes are kept, modules
        that have no update become zero. Without it arrays are placed by the names of
        the modules, where the library allows that.
      alpha: with which the library will multiply ``a @ b / rank``.
      scan_axis: axis of stacked layers in ``like``, where shapes leave it open.
      rank: of every module, see `jaxmerge.io.to_nnx`.
      force: replace ``out`` if it holds a checkpoint or an adapter and nothing else.
      inputs: folders that must survive.

    Raises:
      AdapterError: an update that has no place in ``like``, a missing alpha, a folder
        that cannot be written.
    """
    updates = factors_of(adapter)
    bridge = BRIDGES[layout]
    if alpha is None and bridge.unscaled:
        alpha = "rank"
    weaving = {"alpha": alpha, "rank": rank}
    if like is None:
        held, pairs = None, new_pairs(updates, bridge)
        arrays = woven(updates, pairs, bridge, where=out, **weaving)
    else:
        held = stored_tree(Path(like))
        options = ReadOptions(layout=layout, scan_axis=scan_axis)
        pairs = open_tree(held, options, "rank")[1].pairs
        arrays = woven(updates, pairs, bridge, where=like, **weaving)
        arrays = {path: as_there(held, path, array) for path, array in arrays.items()}
    kept = [path for path in (like, *inputs) if path is not None]
    with staged_folder(out, force=force, inputs=kept) as folder:
        if held is None:
            save_arrays(folder, Path(), nested(arrays))
        else:
            held.write(folder, arrays)
        _check_written(stored_tree(folder), arrays)
        record = {
            "format": FORMAT,
            "layout": layout,
            "lora_alpha": dict(alpha) if isinstance(alpha, Mapping) else alpha,
            "output": {"sha256": digests(folder)},
        }
        text = json.dumps(record, indent=2)
        (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
    ranks = {arrays[pair.a].shape[-1] for pair in pairs}
    dtype = common_dtype(array.dtype for array in arrays.values())
    return SavedTree(tuple(sorted(ranks)), dtype.name)


class TreeOfMerge(NamedTuple):
    """What a merged folder says of the trees that it was made of.

    Attributes:
      like: one of them that is still there.
      alpha: what they were read with, and so ``scan_axis``.
    """

    like: Path
    alpha: Alpha | None
    scan_axis: ScanAxis | None


def tree_of_merge(folder: Folder, layout: BridgeName) -> TreeOfMerge | None:
    """The first checkpoint of a library among the inputs of a merge, if any."""
    try:
        record = read_object(Path(folder) / RECORD_FILE)
        options = checked_options(record["read_options"], folder, "read_options")
        places = [Path(entry["path"]) for entry in record["inputs"]]
    except (AdapterError, KeyError, TypeError):
        return None
    for place in places:
        if is_tree(place) and library_of(stored_tree(place), options) == layout:
            return TreeOfMerge(place, options.lora_alpha, options.scan_axis)
    return None


def _check_written(tree: StoredTree, arrays: Mapping[TreePath, np.ndarray]) -> None:
    """RuntimeError unless arrays read back bit by bit as they were meant."""
    found = tree.read(arrays)
    for path, array in arrays.items():
        if found[path].tobytes() != array.tobytes():
            raise RuntimeError(f"{'/'.join(path)} does not read back as written")
