"""Reads torch checkpoints (``.bin``) without torch and without running their code.

Both formats are read: the zip archive of torch 1.6 and later, and the older stream of
pickles. See `jaxmerge.io.torch_pickle` for what may be in a pickle.
"""

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from jaxmerge.io.errors import AdapterError
from jaxmerge.io.torch_pickle import Storage, Tensor, Unpickler, checked_key

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_FOREIGN_ERRORS = (  # what pickle and zipfile raise on damaged input
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    struct.error,
    TypeError,
    ValueError,
)


class TorchFile:
    """A torch checkpoint that holds one flat dictionary of tensors."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, str] = {}
        try:
            if zipfile.is_zipfile(path):
                found, self._load = _open_archive(path)
            else:
                found, self._load = _open_stream(path)
            self.infos: dict[str, Tensor] = _tensor_table(found)
        except AdapterError as error:
            raise AdapterError(f"{path}: ", *error.message) from error
        except _FOREIGN_ERRORS as error:
            raise AdapterError(
                f"{path}: not a complete torch checkpoint ({error}); "
                "download it again or save it as safetensors"
            ) from error

    def read(self, key: str) -> np.ndarray:
        """The values of one tensor, as a contiguous array of its own."""
        tensor = self.infos[key]
        try:
            flat = self._load(tensor.storage)
            # The stride of an axis that holds no second entry may be any number.
            empty = 0 in tensor.shape
            strides = [
                0 if empty or length == 1 else step * flat.itemsize
                for length, step in zip(tensor.shape, tensor.stride, strict=True)
            ]
            view = np.lib.stride_tricks.as_strided(
                flat[tensor.offset :], tensor.shape, strides, writeable=False
            )
            return np.array(view, order="C")
        except _FOREIGN_ERRORS as error:
            raise AdapterError(f"{self.path}: tensor {key!r}: {error}") from error


def _open_archive(path: Path) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    """The zip format: ``<root>/data.pkl`` and one entry ``<root>/data/<key>`` each."""
    archive = zipfile.ZipFile(path)  # open for as long as tensors may be read
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [n.removesuffix("data.pkl") for n in entries if n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise AdapterError("a zip archive, but not one written by torch.save")
    root = roots[0]
    order = "little"
    if f"{root}byteorder" in entries:
        order = _entry(archive, entries, f"{root}byteorder").decode()
    found = Unpickler(io.BytesIO(_entry(archive, entries, f"{root}data.pkl"))).load()

    def load(storage: Storage) -> np.ndarray:
        data = _entry(archive, entries, f"{root}data/{storage.key}")
        return _buffer(data, storage, order)

    return found, load


def _entry(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str
) -> bytes:
    if name not in entries:
        raise AdapterError(f"the archive has no entry {name!r}")
    if entries[name].compress_type != zipfile.ZIP_STORED:
        raise AdapterError("a compressed archive; torch.save never compresses")
    return archive.read(entries[name])


def _open_stream(path: Path) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    """The format before torch 1.6: five pickles, then the storages one by one."""
    with path.open("rb") as file:
        if Unpickler(file).load() != _LEGACY_MAGIC:
            raise AdapterError("neither a torch checkpoint nor a zip archive")
        if Unpickler(file).load() != _LEGACY_PROTOCOL:
            raise AdapterError("a torch checkpoint of an unknown protocol")
        system = Unpickler(file).load()
        little = isinstance(system, dict) and system.get("little_endian") is True
        found = Unpickler(file).load()
        keys = Unpickler(file).load()
        sizes = {tensor.storage.key: tensor.storage for tensor in _tensors(found)}
        places = _stream_places(file, keys, sizes, "little" if little else "big")

    def load(storage: Storage) -> np.ndarray:
        with path.open("rb") as file:
            file.seek(places[storage.key])
            data = file.read(storage.size * storage.dtype.itemsize)
        return _buffer(data, storage, "little" if little else "big")

    return found, load


def _stream_places(
    file: BinaryIO,
    keys: Any,
    storages: dict[str, Storage],
    order: Literal["little", "big"],
) -> dict[str, int]:
    """Byte offset of each storage; each is preceded by its length in elements."""
    places = {}
    for key in keys:
        if checked_key(key) not in storages:
            raise AdapterError(f"storage {key!r} belongs to no tensor")
        size = int.from_bytes(file.read(8), order)
        if size != storages[key].size:
            raise AdapterError(f"storage {key!r} has another length than announced")
        places[key] = file.tell()
        file.seek(size * storages[key].dtype.itemsize, 1)
    return places


def _buffer(data: bytes, storage: Storage, order: str) -> np.ndarray:
    if len(data) != storage.size * storage.dtype.itemsize:
        raise AdapterError(f"storage {storage.key!r} is cut short")
    flat = np.frombuffer(data, storage.dtype)
    if order not in ("little", "big"):
        raise AdapterError(f"unknown byte order {order!r}")
    return flat if order == sys.byteorder else flat.byteswap()


def _tensors(found: Any) -> list[Tensor]:
    values = found.values() if isinstance(found, dict) else []
    return [value for value in values if isinstance(value, Tensor)]


def _tensor_table(found: Any) -> dict[str, Tensor]:
    """The checkpoint as a flat table; anything but named tensors is refused."""
    if not isinstance(found, dict):
        raise AdapterError(f"holds a {type(found).__name__}, expected named tensors")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise AdapterError(
                f"maps a {type(key).__name__} to a {type(value).__name__}, expected "
                "names of tensors; a training state or nested checkpoint is no adapter"
            )
    return dict(found)
