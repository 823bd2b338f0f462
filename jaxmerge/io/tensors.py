"""Weight files as tables of tensors: headers at once, values on demand."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np

from jaxmerge.disk import AGAIN
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.torch_file import TorchFile
from jaxmerge.untrusted.safetensors_file import DTYPES, Safetensors

_FLOAT8 = tuple(np.dtype(t) for name, t in DTYPES.items() if name.startswith("F8"))
FLOATING = (  # every value of all but the first is one of float32
    *(np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)),
    *_FLOAT8,
)
_ROUNDING = 2.0**-23  # at most, relative; a larger loss is one of range


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
    def files(self) -> tuple[Path, ...]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def infos(self) -> Mapping[str, Described]: ...

    def holder(self, key: str, /) -> "TensorFile": ...

    def read(self, key: str) -> np.ndarray: ...


class SafetensorsFile:
    """A safetensors file; opening it reads the header only."""

    def __init__(self, path: Path):
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        try:
            self._file = Safetensors(path)
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"{path}: not a complete safetensors file ({error}); "
                "download or save it again"
            ) from error
        self.metadata: dict[str, str] = dict(self._file.metadata)
        self.infos: dict[str, TensorInfo] = {
            key: TensorInfo(self._dtype(key, entry.dtype), entry.shape)
            for key, entry in sorted(self._file.tensors.items())
        }

    def _dtype(self, key: str, name: str) -> np.dtype:
        if name not in DTYPES:
            raise AdapterError(
                f"{self.path}: tensor {key!r} has dtype {name}, whose values need the "
                "scales of their quantisation; save it as bf16, fp16 or fp32"
            )
        return np.dtype(DTYPES[name])

    def holder(self, _key: str, /) -> TensorFile:
        """The file that holds a tensor."""
        return self

    def read(self, key: str) -> np.ndarray:
        """The values of one tensor."""
        shape = self.infos[key].shape
        return self.read_values(key, 0, math.prod(shape)).reshape(shape)

    def read_values(self, key: str, start: int, stop: int) -> np.ndarray:
        """Some values of one tensor [stop - start], as they follow each other."""
        try:
            return self._file.read_values(key, start, stop)
        except (OSError, ValueError) as error:
            raise AdapterError(f"{self.path}: {error}; {AGAIN}") from error


def open_tensors(path: Path) -> TensorFile:
    """Opens a weight file by its suffix: ``.safetensors``, else torch's."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def read_piece(tensors: TensorFile, key: str, start: int, stop: int) -> np.ndarray:
    """Some values of one tensor of a safetensors file, or of shards that are such."""
    file = tensors.holder(key)
    assert isinstance(file, SafetensorsFile)  # models in other files are refused
    return file.read_values(key, start, stop)


def usual_dtype(infos: Iterable[Described]) -> np.dtype:
    """The floating dtype of most values of some tensors; float32 if there are none."""
    counts: dict[np.dtype, int] = {}
    for info in infos:
        if info.dtype in FLOATING:
            size = math.prod(info.shape)
            counts[info.dtype] = counts.get(info.dtype, 0) + size
    return max(counts, key=counts.__getitem__, default=np.dtype(np.float32))


def read_finite(tensors: TensorFile, key: str) -> np.ndarray:
    """One floating tensor in float32; AdapterError if a value has no place there."""
    return finite(tensors.read(key), tensors, key)


def finite(values: np.ndarray, tensors: TensorFile, key: str) -> np.ndarray:
    """The values of a floating tensor that were read, as `read_finite` gives them."""
    path = tensors.holder(key).path
    if values.dtype not in FLOATING:
        raise AdapterError(
            f"{path}: tensor {key!r} has dtype {values.dtype}, expected a floating type"
        )
    with np.errstate(over="ignore", under="ignore"):
        found = values.astype(np.float32)
    wide = values.dtype == np.float64
    if not np.isfinite(values if wide else found).all():
        raise AdapterError(
            f"{path}: tensor {key!r} holds NaN or infinite values; "
            "the adapter's training diverged or the file is damaged"
        )
    if wide and _loss(values, found) > _ROUNDING:
        raise AdapterError(
            f"{path}: tensor {key!r} is float64 with values up to "
            f"{np.abs(values).max():.3g}, which underflow or overflow in float32; save "
            "A and B in like magnitudes, as float32"
        )
    return found


def _loss(values: np.ndarray, rounded: np.ndarray) -> float:
    """Relative Frobenius error, whatever the magnitudes."""
    largest = np.abs(values).max(initial=0.0)
    if not largest:
        return 0.0
    exact = values / largest
    return float(np.linalg.norm(exact - rounded / largest) / np.linalg.norm(exact))
