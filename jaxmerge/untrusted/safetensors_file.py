"""Safetensors files, read and not mapped into memory.

A mapped file that another program cuts short ends the process that looks at it. Here
header and values come from one open file, and what is missing is an error.
"""

import math
import os
import weakref
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxmerge.untrusted.safetensors_header import TensorEntry, read_header

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
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


class Safetensors:
    """A safetensors file; opening it reads the header only.

    Args:
      path: of a regular file. It stays open, so that a file that is replaced under its
        name is read to its end.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not a whole safetensors file.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        with self._opened() as file:
            self.metadata, self.tensors = read_header(file)

    def _opened(self) -> BufferedReader:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return open(self._descriptor, "rb", closefd=False)

    def read(self, key: str) -> np.ndarray:
        """The values of one tensor, as an array of its own.

        Raises:
          ValueError: its dtype is not one of `DTYPES`, or the file has become shorter.
        """
        shape = self.tensors[key].shape
        return self.read_values(key, 0, math.prod(shape)).reshape(shape)

    def read_values(self, key: str, start: int, stop: int) -> np.ndarray:
        """Some values of one tensor, as they follow each other in the file.

        Args:
          key: of the tensor.
          start, stop: from which value to which.

        Returns:
          [stop - start].

        Raises:
          ValueError: as for `read`.
        """
        entry = self.tensors[key]
        if entry.dtype not in DTYPES:
            raise ValueError(f"tensor {key!r} has dtype {entry.dtype}")
        values = np.empty(stop - start, DTYPES[entry.dtype])
        place = values.view(np.uint8)
        with self._opened() as file:
            file.seek(entry.start + start * values.itemsize)
            if file.readinto(place.data) < place.size:
                raise ValueError("was cut short while it was read")
        return values
