"""Reads torch checkpoints (``.bin``) without torch and without running their code.

Both formats are read: the zip archive of torch 1.6 and later, and the older stream of
pickles. See `jaxmerge.io.torch_pickle` for what may be in a pickle.
"""

import io
import math
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.torch_pickle import (
    LONGEST_PICKLE,
    Storage,
    Tensor,
    Unpickler,
    checked_key,
)
from jaxmerge.untrusted.archive import DAMAGED, open_archive, place_of
from jaxmerge.untrusted.text import is_plain

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MOST_COPIES = 4  # tied weights are saved once and read twice
_CHUNK = 2**20
_FOREIGN_ERRORS = (  # what pickle and zipfile raise on damaged input
    *DAMAGED,
    pickle.UnpicklingError,
    AttributeError,
    ImportError,
    IndexError,
)


class TorchFile:
    """A torch checkpoint that holds one flat dictionary of tensors."""

    def __init__(self, path: Path):
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        self.metadata: dict[str, str] = {}
        try:
            if zipfile.is_zipfile(path):
                found, self._load = _open_archive(path)
            else:
                found, self._load = _open_stream(path)
            self.infos: dict[str, Tensor] = _tensor_table(found)
            _refuse_copies(self.infos, path.stat().st_size)
        except AdapterError as error:
            raise AdapterError(f"{path}: ", *error.message) from error
        except _FOREIGN_ERRORS as error:
            raise AdapterError(
                f"{path}: not a complete torch checkpoint ({_brief(error)}); "
                "download it again or save it as safetensors"
            ) from error

    def holder(self, _key: str, /) -> "TorchFile":
        """The file that holds a tensor."""
        return self

    def read(self, key: str) -> np.ndarray:
        """The values of one tensor, as a contiguous array of its own."""
        tensor = self.infos[key]
        try:
            flat = self._load(tensor)
            bits = flat.view(f"u{flat.itemsize}")  # numpy cannot stride every dtype
            # The stride of an axis that holds no second entry may be any number.
            strides = [
                0 if length == 1 or not tensor.span else step * flat.itemsize
                for length, step in zip(tensor.shape, tensor.stride, strict=True)
            ]
            view = np.lib.stride_tricks.as_strided(
                bits, tensor.shape, strides, writeable=False
            )
            return np.array(view, order="C").view(tensor.dtype)
        except AdapterError as error:
            raise AdapterError(f"{self.path}: ", *error.message) from error
        except _FOREIGN_ERRORS as error:
            raise AdapterError(
                f"{self.path}: tensor {key!r}: {_brief(error)}"
            ) from error


_Load = Callable[[Tensor], np.ndarray]  # the part of a storage that a tensor is in


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]


def _open_archive(path: Path) -> tuple[Any, _Load]:
    """The zip format: ``<root>/data.pkl`` and one entry ``<root>/data/<key>`` each."""
    archive = open_archive(path)  # open for as long as tensors may be read
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [n.removesuffix("data.pkl") for n in entries if n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise AdapterError("a zip archive, but not one written by torch.save")
    root = roots[0]
    order = "little"
    if f"{root}byteorder" in entries:
        order = _small(archive, entries, f"{root}byteorder").decode()
    _checked_order(order)
    pickled = _small(archive, entries, f"{root}data.pkl")
    found = Unpickler(io.BytesIO(pickled)).load()
    places: dict[str, int] = {}  # of entries that are what their checksum says

    def load(tensor: Tensor) -> np.ndarray:
        storage = tensor.storage
        entry = _entry(entries, f"{root}data/{storage.key}")
        if entry.file_size != storage.size * storage.dtype.itemsize:
            raise AdapterError(f"storage {storage.key!r} is cut short")
        if entry.filename not in places:
            _check_sum(archive, entry)
            places[entry.filename] = place_of(path, entry)
        return _part(path, places[entry.filename], tensor, order)

    return found, load


def _check_sum(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as file:
        while file.read(_CHUNK):  # zipfile compares at the end
            pass


def _small(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str
) -> bytes:
    entry = _entry(entries, name)
    if entry.file_size > LONGEST_PICKLE:
        raise AdapterError(f"the entry {name!r} is too long for an adapter")
    return archive.read(entry)


def _entry(entries: dict[str, zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    if name not in entries:
        raise AdapterError(f"the archive has no entry {show(name)}")
    if entries[name].compress_type != zipfile.ZIP_STORED:
        raise AdapterError("a compressed archive; torch.save never compresses")
    return entries[name]


def _open_stream(path: Path) -> tuple[Any, _Load]:
    """The format before torch 1.6: five pickles, then the storages one by one."""
    with path.open("rb") as file:
        if Unpickler(file).load() != _LEGACY_MAGIC:
            raise AdapterError("neither a torch checkpoint nor a zip archive")
        if Unpickler(file).load() != _LEGACY_PROTOCOL:
            raise AdapterError("a torch checkpoint of an unknown protocol")
        system = Unpickler(file).load()
        little = isinstance(system, dict) and system.get("little_endian") is True
        order = "little" if little else "big"
        found = Unpickler(file).load()
        keys = Unpickler(file).load()
        sizes = {tensor.storage.key: tensor.storage for tensor in _tensors(found)}
        places = _stream_places(file, keys, sizes, order)

    def load(tensor: Tensor) -> np.ndarray:
        return _part(path, places[tensor.storage.key], tensor, order)

    return found, load


def _stream_places(
    file: BinaryIO,
    keys: Any,
    storages: dict[str, Storage],
    order: Literal["little", "big"],
) -> dict[str, int]:
    """Byte offset of each storage; each is preceded by its length in elements."""
    places: dict[str, int] = {}
    if not isinstance(keys, list):
        raise AdapterError("has no list of its storages")
    for key in keys:
        if checked_key(key) not in storages:
            raise AdapterError(f"storage {show(key)} belongs to no tensor")
        if key in places:
            raise AdapterError(f"storage {show(key)} is there twice")
        size = int.from_bytes(file.read(8), order)
        if size != storages[key].size:
            raise AdapterError(f"storage {show(key)} has another length than announced")
        places[key] = file.tell()
        file.seek(size * storages[key].dtype.itemsize, 1)
    return places


def _part(path: Path, place: int, tensor: Tensor, order: str) -> np.ndarray:
    """The numbers of a storage from the first to the last that a tensor shows."""
    dtype = tensor.dtype
    with path.open("rb") as file:
        file.seek(place + tensor.offset * dtype.itemsize)
        flat = np.fromfile(file, np.uint8, tensor.span * dtype.itemsize)
    if flat.size < tensor.span * dtype.itemsize:
        raise AdapterError(f"storage {show(tensor.storage.key)} is cut short")
    flat = flat.view(dtype)
    return flat if order == sys.byteorder else flat.byteswap()


def _checked_order(order: str) -> None:
    if order not in ("little", "big"):
        raise AdapterError(f"unknown byte order {show(order)}")


def _tensors(found: Any) -> list[Tensor]:
    values = found.values() if isinstance(found, dict) else []
    return [value for value in values if isinstance(value, Tensor)]


def _tensor_table(found: Any) -> dict[str, Tensor]:
    """The checkpoint as a flat table; anything but named tensors is refused."""
    if not isinstance(found, dict):
        raise AdapterError(f"holds a {type(found).__name__}, expected named tensors")
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise AdapterError(
                f"maps {show(key)} to a {type(value).__name__}, expected tensors by "
                "their names; a training state or nested checkpoint is no adapter"
            )
        if not is_plain(key):
            raise AdapterError(f"tensor {show(key)} has a name that cannot be shown")
    return dict(found)


def _refuse_copies(tensors: dict[str, Tensor], size: int) -> None:
    """Tensors may share a storage, but many that do would fill the memory."""
    total = sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors.values())
    if total > _MOST_COPIES * size:
        raise AdapterError(
            f"its tensors share their storages: {total} bytes from a file of {size}; "
            "save it with a copy of each (tensor.clone())"
        )
