"""Safetensors files that are written piece by piece, so that none is held in memory."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from jaxmerge.io.tensors import Described
from jaxmerge.untrusted.safetensors_file import DTYPES

_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class SafetensorsWriter:
    """Writes a file whose tensors are known by dtype and shape before their values are.

    The library `safetensors` takes all tensors of a file at once; a model in one file
    would have to fit into memory.

    Args:
      path: file to create.
      infos: key -> dtype and shape. The values are expected in the order of ``keys``.
      metadata: texts for the header.
      hashed: whether `sha256` is asked for.

    Attributes:
      keys: the tensors in the order of the file, `in_file_order`.
    """

    keys: tuple[str, ...]

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, Described],
        metadata: Mapping[str, str],
        *,
        hashed: bool = True,
    ):
        self.keys = in_file_order(infos)
        self._left = 0
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        for key in self.keys:
            dtype, shape = infos[key].dtype, infos[key].shape
            start, self._left = self._left, self._left + _size(dtype, shape)
            header[key] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, self._left],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._digest = hashlib.sha256() if hashed else None
        self._file = path.open("wb")
        self._put(len(text).to_bytes(8, "little") + text)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is None and self._left:
            raise RuntimeError(f"{self._file.name}: {self._left} bytes are missing")

    def write(self, values: np.ndarray) -> None:
        """Writes the values that come next."""
        self._left -= values.nbytes
        self._put(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

    @property
    def sha256(self) -> str:
        """Of everything that was written, in hexadecimal."""
        if self._digest is None:
            raise ValueError(f"{self._file.name}: was not to be hashed")
        return self._digest.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        if self._digest is not None:
            self._digest.update(data)


def in_file_order(infos: Mapping[str, Described]) -> tuple[str, ...]:
    """Wide dtypes first, so that every tensor is aligned, and otherwise as given."""
    return tuple(sorted(infos, key=lambda key: -infos[key].dtype.itemsize))


def _size(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize
