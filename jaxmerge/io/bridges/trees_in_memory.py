"""Trees in memory: the state of a model as adapters, and a merge as such a state."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxmerge.disk import Unchanged
from jaxmerge.io.bridges.opened_tree import open_tree
from jaxmerge.io.bridges.pairs import TreePath
from jaxmerge.io.bridges.table import BRIDGES
from jaxmerge.io.bridges.trees import MemoryTree, replaced
from jaxmerge.io.bridges.weave import Factors, new_pairs, woven
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.options import Alpha, BridgeName, ReadOptions, ScanAxis
from jaxmerge.stacks import concatenate
from jaxmerge.types import LowRank, Update

if TYPE_CHECKING:
    from jaxmerge.io.adapters import Adapters

Updates = Mapping[str, Update]


def from_trees(
    trees: Sequence[Any],
    layout: BridgeName,
    *,
    alpha: Alpha | None,
    names: Sequence[str] | None,
    scan_axis: ScanAxis | None,
) -> "Adapters":
    """The adapters of one model that some trees hold; see `from_nnx`."""
    from jaxmerge.io.opening import opened_adapter
    from jaxmerge.io.read import load_opened

    options = ReadOptions(layout=layout, lora_alpha=alpha, scan_axis=scan_axis)
    if not trees:
        raise AdapterError("expected at least one tree")
    if names is None:
        names = [f"tree-{number}" for number in range(1, len(trees) + 1)]
    if len({*names}) != len(trees) or len(names) != len(trees):
        raise AdapterError(f"expected {len(trees)} different names, one for each tree")
    opened = []
    for name, tree in zip(names, trees, strict=True):
        held = MemoryTree(tree, name)
        found = open_tree(held, options, alpha, "alpha")
        opened.append(
            opened_adapter(
                name, str(held.path), found, options, unchanged=Unchanged(())
            )
        )
    return load_opened(opened, options)


def to_tree(
    updates: "Updates | Adapters",
    layout: BridgeName,
    *,
    like: Any,
    alpha: Alpha | None,
    rank: int | None,
    scan_axis: ScanAxis | None,
) -> Any:
    """A tree of the library that holds an update of every module; see `to_nnx`."""
    bridge = BRIDGES[layout]
    found = factors_of(updates)
    weaving = {"alpha": alpha, "rank": rank, "option": "alpha"}
    if like is None:
        arrays = woven(found, new_pairs(found, bridge), bridge, where="tree", **weaving)
        return nested(arrays)
    options = ReadOptions(layout=layout, scan_axis=scan_axis)
    _, tensors, _ = open_tree(MemoryTree(like, "like"), options, "rank")
    arrays = woven(found, tensors.pairs, bridge, where="like", **weaving)

    def leaf_of(path: TreePath, leaf: Any) -> Any:
        return jax.numpy.asarray(arrays[path], leaf.dtype) if path in arrays else leaf

    return replaced(like, leaf_of)


def factors_of(updates: "Updates | Adapters") -> dict[str, Factors]:
    """Module -> B and A in NumPy; AdapterError for what is not of low rank."""
    from jaxmerge.io.adapters import Adapters

    if isinstance(updates, Adapters):
        if len(updates.names) != 1:
            raise AdapterError(
                f"a tree holds one adapter, and these are {len(updates.names)}; merge "
                "them, or take one with adapters.task(name)"
            )
        updates = {name: concatenate(stack) for name, stack in updates.stacks.items()}
    found: dict[str, Factors] = {}
    for module, update in updates.items():
        if not isinstance(update, LowRank):
            raise AdapterError(
                f"module {module!r}: its update is dense, not of low rank; truncate "
                "it, or merge in core or KnOTS space"
            )
        b, a = (np.asarray(x, np.float32) for x in (update.b, update.a))
        found[module] = b, a
    return found


def nested(arrays: Mapping[TreePath, Any]) -> dict[str, Any]:
    """Arrays by path as dicts in dicts.

    Raises:
      AdapterError: a path that leads through another array.
    """
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        place = tree
        for key in path[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise AdapterError(f"{'/'.join(path)!r} leads through a factor")
        place[path[-1]] = jax.numpy.asarray(array)
    return tree
