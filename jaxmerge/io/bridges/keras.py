"""Keras: the file ``.lora.h5`` that the backbones of KerasHub save and load.

``lora/<index>/vars/lora_kernel_a [*inputs, r]`` and ``lora_kernel_b [r, outputs]`` of
each layer, by its index in the model, and ``lora/vars/rank``. The update of a kernel
``[*inputs, outputs]`` is ``alpha / r * a @ b``, of an EinsumDense too: its last axis
counts as outputs and all others as inputs. Files hold no alpha.
"""

import importlib
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.io.bridges.pairs import Role, TreePath
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.files import checked_file
from jaxmerge.io.tensors import TensorInfo
from jaxmerge.refusals import Refusal

ENDING = ".lora.h5"
_FILE = f"adapter{ENDING}"  # that is written
_MAGIC = b"\x89HDF\r\n\x1a\n"
_INDEX = re.compile(r"\d{1,6}")
_PARTS = ("lora_kernel_a", "lora_kernel_b")
_DTYPES = tuple(map(np.dtype, (np.float16, np.float32, np.float64)))
_DAMAGE = (OSError, KeyError, RuntimeError, TypeError, ValueError)


class KerasFile:
    """The factors of a file; opening it reads their shapes.

    Attributes:
      path: the file.
      files: it alone.
      infos: shape and dtype of every factor, by ``lora, <index>, lora_kernel_a``.
      rank: of all of them.
    """

    def __init__(self, place: Path):
        found = keras_file(place)
        if found is None:
            raise AdapterError(f"{place}: holds no file {ENDING} of Keras")
        self.path = checked_file(found)
        self.files: tuple[Path, ...] = (self.path,)
        self.infos: dict[TreePath, TensorInfo] = {}
        with self._opened() as file:
            group = self._inside(file, "lora")
            self.rank = int(self._dataset(group, "vars/rank", numeric=False)[()])
            for index in sorted(filter(_INDEX.fullmatch, group), key=int):
                for part in _PARTS:
                    values = self._dataset(group, f"{index}/vars/{part}")
                    info = TensorInfo(np.dtype(values.dtype), tuple(values.shape))
                    self.infos["lora", index, part] = info
        self._check()

    def read(self, paths: Iterable[TreePath]) -> dict[TreePath, np.ndarray]:
        """The values of some factors."""
        with self._opened() as file:
            group = self._inside(file, "lora")
            return {
                path: np.asarray(self._dataset(group, f"{path[1]}/vars/{path[2]}"))
                for path in paths
            }

    def write(self, folder: Path, arrays: Mapping[TreePath, np.ndarray]) -> None:
        """Writes a file of these factors into a folder, as KerasHub does."""
        (rank,) = {array.shape[0] for (*_, part), array in arrays.items() if _b(part)}
        with _library().File(folder / _FILE, "w") as file:
            file.create_group("lora").create_group("vars")["rank"] = rank
            for (lora, index, part), array in arrays.items():
                file[f"{lora}/{index}/vars/{part}"] = array

    def _check(self) -> None:
        """AdapterError unless all factors are there, and of the rank of the file."""
        if not self.infos:
            raise self._damaged("holds no layer with factors")
        for path, info in self.infos.items():
            rank = info.shape[0 if _b(path[-1]) else -1] if info.shape else 0
            if rank != self.rank or len(info.shape) < 2 or info.dtype not in _DTYPES:
                raise self._damaged(
                    f"{'/'.join(path)} is {list(info.shape)} of {info.dtype}, expected "
                    f"rank {self.rank} and float16, float32 or float64"
                )

    def _inside(self, group: Any, name: str) -> Any:
        """An entry of a group that is in the file itself."""
        for piece in name.split("/"):
            if type(group.get(piece, getlink=True)) is not _library().HardLink:
                raise self._damaged(f"{piece!r} is missing or leads elsewhere")
            group = group[piece]
        return group

    def _dataset(self, group: Any, name: str, *, numeric: bool = True) -> Any:
        """An array that is stored in the file as it is."""
        found = self._inside(group, name)
        if not isinstance(found, _library().Dataset):
            raise self._damaged(f"{name!r} is no array")
        packed = found.id.get_create_plist().get_nfilters() > 0
        if packed or found.is_virtual or found.external:
            raise self._damaged(f"{name!r} is compressed, or lies in another file")
        if found.nbytes > self.path.stat().st_size or (not numeric and found.shape):
            raise self._damaged(f"{name!r} is larger than the file")
        return found

    @contextmanager
    def _opened(self) -> Generator[Any, None, None]:
        try:
            with _library().File(self.path, "r") as file:
                yield file
        except Refusal:
            raise
        except _DAMAGE as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> AdapterError:
        return AdapterError(
            f"{self.path}: {why}; it is not a file that save_lora_weights of KerasHub "
            "writes"
        )


def role(path: TreePath) -> Role | None:
    """The layer of a factor and which one it is.

    >>> role(("lora", "12", "lora_kernel_a"))
    (('lora', '12'), 'a')
    """
    if len(path) != 3 or path[0] != "lora" or path[-1] not in _PARTS:
        return None
    return path[:-1], "b" if _b(path[-1]) else "a"


def keras_file(place: Path) -> Path | None:
    """The file of Keras that is given, or the one in a folder; None without one."""
    if place.is_file():
        return place if place.name.endswith(ENDING) and _is_hdf(place) else None
    try:
        found = [path for path in place.glob(f"*{ENDING}") if _is_hdf(path)]
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def _b(part: str) -> bool:
    return part == _PARTS[1]


def _is_hdf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _library() -> Any:
    """The package ``h5py``; Refusal, which says how to install it."""
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise Refusal(
            "for files of Keras the package h5py is needed: "
            'pip install "jaxmerge[keras]"'
        ) from error
