"""Reads torch checkpoints (``.bin``) without torch and without running their code.

A torch checkpoint is a pickle, and a pickle is a program. The unpickler here knows
tensor rebuilding, storages and ordered dictionaries and nothing else: any other name
in the pickle is an error before it is called. Both formats are read: the zip archive
of torch 1.6 and later, and the older stream of pickles.
"""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxmerge.io.errors import AdapterError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
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
    TypeError,
    ValueError,
)


class _Storage(NamedTuple):
    """A flat buffer of the file, named but not yet read."""

    key: str
    dtype: np.dtype
    size: int  # elements


class _Tensor(NamedTuple):
    """A strided view of a storage; has the ``dtype`` and ``shape`` of a TensorInfo."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype


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
            self.infos = _tensor_table(found)
        except AdapterError as error:
            raise AdapterError(f"{path}: {error}") from error
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


def _rebuild_tensor(storage: _Storage, offset: int, shape, stride, *_: Any) -> _Tensor:
    """Stands in for torch's rebuild functions; checks that the view stays inside."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor is rebuilt from something not a storage")
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(
        type(number) is int and number >= 0 for number in numbers
    ):
        raise pickle.UnpicklingError("a tensor has an impossible shape or stride")
    empty = 0 in shape
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if not empty and last >= storage.size:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if not empty and np.prod(shape, dtype=float) > storage.size:
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return _Tensor(storage, offset, shape, stride)


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError(
            "a parameter is rebuilt from something not a tensor"
        )
    return tensor


_KNOWN_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{
        (module, name): np.dtype(dtype)
        for module in ("torch", "torch.storage")
        for name, dtype in _STORAGES.items()
    },
}


class _Unpickler(pickle.Unpickler):
    """An unpickler for which only `_KNOWN_NAMES` exist."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN_NAMES[module, name]
        except KeyError:
            raise AdapterError(
                f"the pickle asks for {module}.{name}, which is not part of a tensor "
                "file and was not run; save the adapter as safetensors"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, size, *view = pid
        if (
            kind != "storage"
            or not isinstance(dtype, np.dtype)
            or not isinstance(key, str)
            or type(size) is not int
            or size < 0
            or view not in ([], [None])
        ):
            raise pickle.UnpicklingError("a storage record of an unknown form")
        return _Storage(key, dtype, size)


def _open_archive(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """The zip format: ``<root>/data.pkl`` and one entry ``<root>/data/<key>`` each."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [n.removesuffix("data.pkl") for n in entries if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise AdapterError("a zip archive, but not one written by torch.save")
        root = roots[0]
        order = "little"
        if f"{root}byteorder" in entries:
            order = _entry(archive, entries, f"{root}byteorder").decode()
        found = _Unpickler(
            io.BytesIO(_entry(archive, entries, f"{root}data.pkl"))
        ).load()

    def load(storage: _Storage) -> np.ndarray:
        with zipfile.ZipFile(path) as archive:
            data = _entry(archive, entries, f"{root}data/{storage.key}")
        return _buffer(data, storage, order)

    return found, load


def _entry(archive: zipfile.ZipFile, entries: dict, name: str) -> bytes:
    if name not in entries:
        raise AdapterError(f"the archive has no entry {name!r}")
    if entries[name].compress_type != zipfile.ZIP_STORED:
        raise AdapterError("a compressed archive; torch.save never compresses")
    return archive.read(entries[name])


def _open_stream(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """The format before torch 1.6: five pickles, then the storages one by one."""
    with path.open("rb") as file:
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise AdapterError("neither a torch checkpoint nor a zip archive")
        if _Unpickler(file).load() != _LEGACY_PROTOCOL:
            raise AdapterError("a torch checkpoint of an unknown protocol")
        system = _Unpickler(file).load()
        little = isinstance(system, dict) and system.get("little_endian") is True
        found = _Unpickler(file).load()
        keys = _Unpickler(file).load()
        sizes = {tensor.storage.key: tensor.storage for tensor in _tensors(found)}
        places = _stream_places(file, keys, sizes, "little" if little else "big")

    def load(storage: _Storage) -> np.ndarray:
        with path.open("rb") as file:
            file.seek(places[storage.key])
            data = file.read(storage.size * storage.dtype.itemsize)
        return _buffer(data, storage, "little" if little else "big")

    return found, load


def _stream_places(
    file: BinaryIO, keys: Any, storages: dict[str, _Storage], order: str
) -> dict[str, int]:
    """Byte offset of each storage; each is preceded by its length in elements."""
    places = {}
    for key in keys:
        if key not in storages:
            raise AdapterError(f"storage {key!r} belongs to no tensor")
        size = int.from_bytes(file.read(8), order)
        if size != storages[key].size:
            raise AdapterError(f"storage {key!r} has another length than announced")
        places[key] = file.tell()
        file.seek(size * storages[key].dtype.itemsize, 1)
    return places


def _buffer(data: bytes, storage: _Storage, order: str) -> np.ndarray:
    if len(data) != storage.size * storage.dtype.itemsize:
        raise AdapterError(f"storage {storage.key!r} is cut short")
    flat = np.frombuffer(data, storage.dtype)
    if order not in ("little", "big"):
        raise AdapterError(f"unknown byte order {order!r}")
    return flat if order == sys.byteorder else flat.byteswap()


def _tensors(found: Any) -> list[_Tensor]:
    values = found.values() if isinstance(found, dict) else []
    return [value for value in values if isinstance(value, _Tensor)]


def _tensor_table(found: Any) -> dict[str, _Tensor]:
    """The checkpoint as a flat table; anything but named tensors is refused."""
    if not isinstance(found, dict):
        raise AdapterError(f"holds a {type(found).__name__}, expected named tensors")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, _Tensor):
            raise AdapterError(
                f"maps a {type(key).__name__} to a {type(value).__name__}, expected "
                "names of tensors; a training state or nested checkpoint is no adapter"
            )
    return dict(found)
