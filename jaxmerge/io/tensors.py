"""Weight files as tables of tensors: headers at once, values on demand."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np
import safetensors

from jaxmerge.io.errors import AdapterError
from jaxmerge.io.torch_file import TorchFile
from jaxmerge.untrusted.safetensors_header import read_header

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FLOATING = tuple(
    np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
)


class TensorInfo(NamedTuple):
    """What the header says about one tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]


class Described(Protocol):
    """What every kind of file says about a tensor."""

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class TensorFile(Protocol):
    """A weight file: ``infos`` from its header, values by ``read``."""

    @property
    def path(self) -> Path: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def infos(self) -> Mapping[str, Described]: ...

    def read(self, key: str) -> np.ndarray: ...


class SafetensorsFile:
    """A safetensors file; opening it reads the header only."""

    def __init__(self, path: Path):
        self.path = path
        try:
            header = read_header(path)
            self._file = safetensors.safe_open(path, framework="numpy")
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise AdapterError(
                f"{path}: not a complete safetensors file ({error}); "
                "download or save it again"
            ) from error
        self.metadata: dict[str, str] = dict(header.metadata)
        self.infos: dict[str, TensorInfo] = {
            key: TensorInfo(self._dtype(key, entry.dtype), entry.shape)
            for key, entry in sorted(header.tensors.items())
        }

    def _dtype(self, key: str, name: str) -> np.dtype:
        if name not in _DTYPES:
            raise AdapterError(
                f"{self.path}: tensor {key!r} has dtype {name}; quantised adapters "
                "cannot be merged exactly, save it as bf16, fp16 or fp32"
            )
        return np.dtype(_DTYPES[name])

    def read(self, key: str) -> np.ndarray:
        """The values of one tensor."""
        return self._file.get_tensor(key)


def open_tensors(path: Path) -> TensorFile:
    """Opens a weight file by its suffix: ``.safetensors``, else torch's."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def read_finite(tensors: TensorFile, key: str) -> np.ndarray:
    """One floating tensor in float32; AdapterError if a value is NaN or Inf."""
    values = tensors.read(key)
    if values.dtype not in FLOATING:
        raise AdapterError(
            f"{tensors.path}: tensor {key!r} has dtype {values.dtype}, "
            "expected a floating type"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise AdapterError(
            f"{tensors.path}: tensor {key!r} holds NaN or infinite values; "
            "the adapter's training diverged or the file is damaged"
        )
    return values
