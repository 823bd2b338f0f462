"""Weights that bitsandbytes has quantised: 4-bit (nf4, fp4) and 8-bit (LLM.int8)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.tensors import TensorFile, read_piece
from jaxmerge.untrusted.json_text import parse_json

_STATE = ".quant_state.bitsandbytes__"
_LARGEST = 64 * 2**10  # bytes of a state, which has ten entries
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_PER_127 = np.float32(7.874015718698502e-3)  # 1/127, as the library writes it


class Nested(NamedTuple):
    """How the scales of blocks are quantised in their turn.

    Attributes:
      block: number of scales that share one of their own.
      offset: added to all of them.
    """

    block: int
    offset: float


@dataclass(frozen=True)
class FourBit:
    """A weight of 4 bits a value: ``code[q] * absmax[block]``, rounded to its dtype.

    Values follow each other row by row, two in a byte, the first in its upper half.
    With nested scales ``absmax = nested_code[q'] * nested_absmax[block'] + offset``.
    All of it is computed in float32, as the library does.

    Attributes:
      tensors: of the model.
      key: of the weight.
      shape: of the weight that it stands for.
      dtype: of that weight.
      block: number of values that share a scale.
      nested: how the scales are quantised; None if they are not.
    """

    tensors: TensorFile
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    block: int
    nested: Nested | None

    def rows(self, rows: slice) -> np.ndarray:
        """Some of its rows [rows, n]."""
        columns = math.prod(self.shape[1:])
        start, stop = rows.start * columns, rows.stop * columns
        first, last = start // self.block, -(-stop // self.block)
        scales = np.repeat(self._scales(first, last), self.block)
        scales = scales[start - first * self.block :][: stop - start]
        values = self._whole("quant_map")[self._codes(start, stop)] * scales
        return values.astype(self.dtype).reshape(-1, columns)

    def _codes(self, start: int, stop: int) -> np.ndarray:
        kept = self.tensors.infos[self.key].dtype  # of words that hold the bytes
        size = kept.itemsize
        first, last = start // 2, -(-stop // 2)
        words = read_piece(self.tensors, self.key, first // size, -(-last // size))
        packed = words.view(np.uint8)[first % size :][: last - first]
        codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
        return codes[start - 2 * first :][: stop - start]

    def _scales(self, first: int, last: int) -> np.ndarray:
        found = read_piece(self.tensors, f"{self.key}.absmax", first, last)
        if self.nested is None:
            return found
        blocks = np.arange(first, last) // self.nested.block
        scales = self._whole("nested_quant_map")[found]
        scales = scales * self._whole("nested_absmax")[blocks]
        return scales + np.float32(self.nested.offset)

    def _whole(self, name: str) -> np.ndarray:
        key = f"{self.key}.{name}"
        return read_piece(
            self.tensors, key, 0, math.prod(self.tensors.infos[key].shape)
        )


@dataclass(frozen=True)
class EightBit:
    """A weight of 8 bits a value: ``q * SCB[row] / 127``, in float32.

    Attributes:
      tensors: of the model.
      module: of which it is the weight.
      shape: of the weight.
      dtype: in which the weight is kept.
    """

    tensors: TensorFile
    module: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def rows(self, rows: slice) -> np.ndarray:
        """Some of its rows [rows, n]."""
        columns, key = self.shape[1], f"{self.module}.weight"
        start, stop = rows.start * columns, rows.stop * columns
        values = read_piece(self.tensors, key, start, stop).astype(np.float32)
        scales = read_piece(self.tensors, f"{self.module}.SCB", rows.start, rows.stop)
        return values.reshape(-1, columns) * scales[:, None] * _PER_127


def four_bit(tensors: TensorFile) -> dict[str, tuple[FourBit, frozenset[str]]]:
    """Key of each 4-bit weight -> the weight, and the tensors of which it consists.

    Raises:
      AdapterError: tensors that are missing, or that do not fit each other.
    """
    found: dict[str, tuple[FourBit, frozenset[str]]] = {}
    for state in tensors.infos:
        key, ends, kind = state.partition(_STATE)
        if ends:
            weight = _four_bit(tensors, key, state, kind)
            names = ["quant_map", "absmax"]
            names += ["nested_absmax", "nested_quant_map"] if weight.nested else []
            parts = [key, state, *(f"{key}.{name}" for name in names)]
            _check_parts(tensors, weight)
            found[key] = weight, frozenset(parts)
    return found


def eight_bit(
    tensors: TensorFile, dtype: np.dtype
) -> dict[str, tuple[EightBit, frozenset[str]]]:
    """As `four_bit`, the 8-bit weights, which are kept in a dtype of the model."""
    found = {}
    for scales in tensors.infos:
        module, ends, _ = scales.rpartition(".SCB")
        if not ends or scales != f"{module}.SCB":
            continue
        key, layout = f"{module}.weight", f"{module}.weight_format"
        info = tensors.infos.get(key)
        if info is None or info.dtype != np.int8 or len(info.shape) != 2:
            raise _damaged(tensors, scales, f"no int8 weight {key!r} is there")
        if tensors.infos[scales].shape != info.shape[:1]:
            raise _damaged(tensors, scales, f"is not of the rows of {key!r}")
        parts = {key, scales}
        if layout in tensors.infos:
            parts.add(layout)
            if read_piece(tensors, layout, 0, 1)[0] != 0:
                raise _damaged(tensors, layout, "a layout of values other than by rows")
        weight = EightBit(tensors, module, info.shape, dtype)
        found[key] = weight, frozenset(parts)
    return found


def _four_bit(tensors: TensorFile, key: str, state: str, kind: str) -> FourBit:
    size = tensors.infos[state].shape
    if tensors.infos[state].dtype != np.uint8 or len(size) != 1 or size[0] > _LARGEST:
        raise _damaged(tensors, state, "no JSON as bytes")
    try:
        said = parse_json(read_piece(tensors, state, 0, size[0]).tobytes())
    except ValueError as error:
        raise _damaged(tensors, state, str(error)) from error
    if not isinstance(said, Mapping) or said.get("quant_type") != kind:
        raise _damaged(tensors, state, f"quant_type is not {kind!r}")
    if kind not in ("nf4", "fp4"):
        raise _damaged(tensors, state, f"quant_type {show(kind)} is not known")
    shape = said.get("shape")
    if not isinstance(shape, list) or not shape or not all(map(_is_count, shape)):
        raise _damaged(tensors, state, f"shape {show(shape)}")
    if said.get("dtype") not in _DTYPES:
        raise _damaged(tensors, state, f"dtype {show(said.get('dtype'))}")
    nested = None
    if f"{key}.nested_absmax" in tensors.infos or "nested_blocksize" in said:
        offset = said.get("nested_offset")
        if not isinstance(offset, int | float) or said.get("nested_dtype") != "float32":
            raise _damaged(tensors, state, "nested scales that are not understood")
        nested = Nested(_block(tensors, state, said, "nested_blocksize"), float(offset))
    block = _block(tensors, state, said, "blocksize")
    return FourBit(tensors, key, tuple(shape), _DTYPES[said["dtype"]], block, nested)


def _block(tensors: TensorFile, state: str, said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    if not _is_count(value):
        raise _damaged(tensors, state, f"{name} {show(value)}")
    return value


def _check_parts(tensors: TensorFile, weight: FourBit) -> None:
    """AdapterError unless every tensor of a weight is there, with the right size."""
    values = math.prod(weight.shape)
    blocks = -(-values // weight.block)
    single = np.dtype(np.float32)
    expected: dict[str, tuple[int, np.dtype]] = {
        "quant_map": (16, single),
        "absmax": (blocks, single),
    }
    if weight.nested is not None:
        expected["absmax"] = (blocks, np.dtype(np.uint8))
        expected["nested_absmax"] = (-(-blocks // weight.nested.block), single)
        expected["nested_quant_map"] = (256, single)
    for name, (size, dtype) in expected.items():
        key = f"{weight.key}.{name}"
        info = tensors.infos.get(key)
        if info is None or math.prod(info.shape) != size or info.dtype != dtype:
            raise _damaged(tensors, key, f"expected {size} values of {dtype}")
    info = tensors.infos.get(weight.key)
    size = 0 if info is None else math.prod(info.shape) * info.dtype.itemsize
    least = -(-values // 2)
    if info is None or not least <= size < least + info.dtype.itemsize:
        raise _damaged(tensors, weight.key, f"expected {least} bytes")


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 1


def _damaged(tensors: TensorFile, key: str, why: str) -> AdapterError:
    path = tensors.holder(key).path if key in tensors.infos else tensors.path
    return AdapterError(
        f"{path}: tensor {key!r}: {why}; it is not as bitsandbytes saves quantised "
        "weights, download or save the model again"
    )
