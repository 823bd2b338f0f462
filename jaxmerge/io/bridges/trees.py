"""Trees of arrays by path: in memory, or in a checkpoint of orbax."""

import logging
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxmerge.io.bridges.pairs import TreePath
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.files import first_entries
from jaxmerge.io.tensors import TensorInfo

METADATA = "_METADATA"  # of orbax, in every folder that holds a tree
PARAMETERS = "model_params"  # the item in which tunix keeps them
_PLACE = "tree"  # in which orbax writes, before its files are moved up
_MOST = 1000  # entries of a folder that are looked at
_BOXES = ("value", "raw_value")  # what an nnx.Variable or a box of linen adds to a path
_DAMAGE = (AttributeError, KeyError, MemoryError, OSError, TypeError, ValueError)


class Tree(Protocol):
    """A tree of arrays: shapes and dtypes at once, values on demand.

    Attributes:
      path: where it is, for messages and records.
      files: files of which it consists.
      infos: shape and dtype of every array.
    """

    @property
    def path(self) -> Path: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def infos(self) -> Mapping[TreePath, TensorInfo]: ...

    def read(self, paths: Iterable[TreePath]) -> dict[TreePath, np.ndarray]:
        """The values of some arrays."""
        ...


class StoredTree(Tree, Protocol):
    """A tree on disk."""

    def write(self, folder: Path, arrays: Mapping[TreePath, np.ndarray]) -> None:
        """Writes the tree into an existing folder, with other arrays at some paths."""
        ...


class MemoryTree:
    """A pytree: dicts, lists, an `nnx.State`, with arrays as leaves."""

    files: tuple[Path, ...] = ()

    def __init__(self, tree: Any, name: str):
        self.path = Path(f"memory:{name}")
        self.leaves = by_path(tree)
        self.infos = described(self.leaves)

    def read(self, paths: Iterable[TreePath]) -> dict[TreePath, np.ndarray]:
        """The values of some arrays."""
        return {path: np.asarray(self.leaves[path]) for path in paths}


class OrbaxTree:
    """The tree of a checkpoint; opening it reads what orbax says of the arrays.

    Attributes:
      root: the folder that was given.
      item: the folder that holds the tree, in or below it.
    """

    def __init__(self, folder: Path):
        found = tree_folder(folder)
        if found is None:
            raise AdapterError(f"{folder}: holds no checkpoint of orbax")
        self.root, self.item = folder, found
        self.path = found / METADATA
        self.files = tuple(sorted(p for p in found.rglob("*") if p.is_file()))
        with _orbax(found) as checkpointer:
            self.tree: Any = checkpointer.metadata(found.resolve()).item_metadata.tree
            self.infos = described(by_path(self.tree))

    def read(self, paths: Iterable[TreePath]) -> dict[TreePath, np.ndarray]:
        """The values of some arrays, and of no others."""
        import orbax.checkpoint as ocp

        wanted = set(paths)
        with _orbax(self.item) as checkpointer:
            item = replaced(
                self.tree,
                lambda path, _: 0 if path in wanted else ocp.PLACEHOLDER,
            )
            as_numpy = replaced(
                item, lambda _path, _leaf: ocp.RestoreArgs(restore_type=np.ndarray)
            )
            found = by_path(
                checkpointer.restore(
                    self.item.resolve(),
                    args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy),
                )
            )
        return {path: self._checked(path, found[path]) for path in wanted}

    def write(self, folder: Path, arrays: Mapping[TreePath, np.ndarray]) -> None:
        """Writes the tree into a folder, with other arrays at some paths."""
        values = {**self.read(self.infos.keys() - arrays.keys()), **arrays}
        tree = replaced(self.tree, lambda path, _: values[path])
        save_arrays(folder, self.item.relative_to(self.root), tree)

    def _checked(self, path: TreePath, array: Any) -> np.ndarray:
        info = self.infos[path]
        if (info.shape, info.dtype) != (array.shape, array.dtype):
            raise AdapterError(
                f"{self.path}: says another shape or dtype of {'/'.join(path)!r} than "
                "the array has; the checkpoint is damaged"
            )
        return array


def as_there(tree: Tree, path: TreePath, array: np.ndarray) -> np.ndarray:
    """An array in the dtype of the one that a tree has at a path."""
    dtype = tree.infos[path].dtype
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not np.isfinite(cast).all():
        raise AdapterError(
            f"{tree.path}: {'/'.join(path)!r} does not fit into {dtype.name}, the "
            "dtype of the tree"
        )
    return cast


def save_arrays(folder: Path, place: Path, tree: Any) -> None:
    """Writes a tree as orbax does.

    Args:
      folder: an existing folder.
      place: of the tree in it; ``<step>/<item>`` is written by a manager of steps.
      tree: dicts of arrays.
    """
    import orbax.checkpoint as ocp

    folder = folder.resolve()
    if len(place.parts) == 2 and place.parts[0].isdecimal():
        step, item = place.parts
        with ocp.CheckpointManager(folder) as manager:
            saved = ocp.args.Composite(**{item: ocp.args.PyTreeSave(tree)})
            manager.save(int(step), args=saved)
            manager.wait_until_finished()
        return
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / place / _PLACE, tree)
    for path in (folder / place / _PLACE).iterdir():
        path.rename(folder / place / path.name)
    (folder / place / _PLACE).rmdir()


def tree_folder(folder: Path) -> Path | None:
    """The folder below a checkpoint that holds the tree; None if it is none of orbax.

    A manager of orbax writes ``<step>/<item>``; where there is one step, and one item
    or that of tunix, it is taken.

    Raises:
      AdapterError: several steps or items, of which one has to be given.
    """
    if os.path.lexists(folder / METADATA):
        return folder
    items = _below(folder)
    if items:
        return _one(folder, items, PARAMETERS)
    steps = [name for name in _folders(folder) if name.isdecimal()]
    steps = [n for n in steps if _below(folder / n) or _is_tree(folder / n)]
    if not steps:
        return None
    return tree_folder(_one(folder, steps, None))


def _one(folder: Path, names: Sequence[str], preferred: str | None) -> Path:
    if preferred in names:
        return folder / str(preferred)
    if len(names) > 1:
        ordered = sorted(names, key=lambda n: (len(n), n) if n.isdecimal() else (0, n))
        raise AdapterError(
            f"{folder}: holds {len(names)} checkpoints ({listing(ordered)}); give the "
            f"one that is meant, such as {folder / ordered[-1]}"
        )
    return folder / names[0]


def _below(folder: Path) -> list[str]:
    return [name for name in _folders(folder) if _is_tree(folder / name)]


def _is_tree(folder: Path) -> bool:
    return os.path.lexists(folder / METADATA)


def _folders(folder: Path) -> list[str]:
    try:
        found = first_entries(folder, _MOST)
    except OSError:
        return []
    return sorted(entry.name for entry in found if entry.is_dir())


def by_path(tree: Any) -> dict[TreePath, Any]:
    """The leaves of a pytree by their paths, boxes of variables left out."""
    import jax

    found: dict[TreePath, Any] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = _path(keys)
        if path in found:
            raise AdapterError(f"two leaves of the tree are at {'/'.join(path)!r}")
        found[path] = leaf
    return found


def replaced(tree: Any, leaf_of: Any) -> Any:
    """A pytree with ``leaf_of(path, leaf)`` in the place of every leaf."""
    import jax

    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf_of(_path(keys), leaf), tree
    )


def described(leaves: Mapping[TreePath, Any]) -> dict[TreePath, TensorInfo]:
    """Shape and dtype of the leaves that are arrays."""
    return {
        path: TensorInfo(np.dtype(leaf.dtype), tuple(map(int, leaf.shape)))
        for path, leaf in leaves.items()
        if getattr(leaf, "shape", None) is not None and _is_numeric(leaf)
    }


def _is_numeric(leaf: Any) -> bool:
    try:
        np.dtype(leaf.dtype)
    except TypeError:  # such as keys of random numbers
        return False
    return True


def _path(keys: Sequence[Any]) -> TreePath:
    """Keys of a pytree as text; the box around an array is no part of its path."""
    names = []
    for key in keys:
        known = (getattr(key, kind, None) for kind in ("key", "idx", "name"))
        names.append(str(next((k for k in known if k is not None), key)))
    if len(names) > 1 and names[-1] in _BOXES:
        names.pop()
    return tuple(names)


@contextmanager
def _orbax(folder: Path) -> Generator[Any, None, None]:
    """A checkpointer, whose troubles with a damaged folder are refusals."""
    import orbax.checkpoint as ocp

    log = logging.getLogger("absl")  # it shows what is in damaged files as it is
    before, log.disabled = log.disabled, True
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            yield checkpointer
    except AdapterError:
        raise
    except _DAMAGE as error:
        raise AdapterError(
            f"{folder}: not a complete checkpoint of orbax ({error})"
        ) from error
    finally:
        log.disabled = before
