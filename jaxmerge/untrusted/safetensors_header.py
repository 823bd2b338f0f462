"""The header of a safetensors file, checked word for word before anything is read.

The format allows one reading of a header only: every key once, values of the data one
behind the other without a gap. The size of the header and the number of tensors are
bounded before they are read.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from jaxmerge.untrusted.json_text import parse_json
from jaxmerge.untrusted.text import is_plain

MOST_TENSORS = 200_000
_LARGEST = 40 * 2**20  # bytes of a header
_MOST_AXES = 16
_LONGEST_AXIS = 2**40
_METADATA = "__metadata__"
_ENTRY = {"dtype", "shape", "data_offsets"}
_BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32},
    **{"F16": 16, "BF16": 16, "I16": 16, "U16": 16},
    **{"I8": 8, "U8": 8, "BOOL": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}


class TensorEntry(NamedTuple):
    """One tensor of a file: its dtype by name, and where its bytes are.

    Attributes:
      start, stop: of its bytes, from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a header says.

    Attributes:
      tensors: in the order of their bytes.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]


def read_header(file: BinaryIO) -> Header:
    """Reads and checks the header of a file.

    Raises:
      OSError: the file cannot be read.
      ValueError: says what is wrong with it.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError("cut off, or no safetensors file at all")
    if length > _LARGEST:
        raise ValueError(f"its header is longer than {_LARGEST >> 20} MiB")
    data = file.read(length)
    if not data.startswith(b"{"):
        raise ValueError("no safetensors file: its header is not JSON")
    if data.count(b'"data_offsets"') > MOST_TENSORS:
        raise ValueError(f"holds more than {MOST_TENSORS} tensors")
    found = parse_json(data, most=12 * MOST_TENSORS, pairs=_compact)
    if not isinstance(found, dict):
        raise ValueError("its header is not a table of tensors")
    metadata = found.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise ValueError(f"its {_METADATA} is not a table of texts")
    return Header(metadata, _placed(found, 8 + length, size))


def _compact(pairs: list[tuple[str, Any]]) -> Any:
    """An entry as a small tuple as soon as it is read, any other object as it is."""
    table = dict(pairs)
    if table.keys() != _ENTRY:
        return table
    dtype, shape, offsets = table["dtype"], table["shape"], table["data_offsets"]
    if (
        not isinstance(dtype, str)
        or not _sizes(shape, _MOST_AXES)
        or not _sizes(offsets, 2)
        or len(offsets) != 2
    ):
        raise ValueError("an entry whose dtype, shape or data_offsets mean nothing")
    return TensorEntry(dtype, tuple(shape), *offsets)


def _sizes(value: Any, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(n) is int and 0 <= n <= _LONGEST_AXIS for n in value)
    )


def _placed(
    entries: Mapping[str, Any], start: int, size: int
) -> dict[str, TensorEntry]:
    for key, entry in entries.items():
        if not isinstance(entry, TensorEntry):
            raise ValueError(f"tensor {_short(key)} has no dtype, shape and place")
        if not is_plain(key):
            raise ValueError(f"tensor {_short(key)} has a name that cannot be shown")
        bits = _BITS.get(entry.dtype)
        if bits is None:
            raise ValueError(f"tensor {_short(key)} has an unknown dtype")
        if math.prod(entry.shape) * bits != 8 * (entry.stop - entry.start):
            raise ValueError(f"tensor {_short(key)} has another size than its shape")
    place, tensors = start, {}
    for key, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start + start != place:
            raise ValueError(f"tensor {_short(key)} overlaps another, or leaves a gap")
        place = entry.stop + start
        tensors[key] = entry._replace(start=entry.start + start, stop=place)
    if place != size:
        raise ValueError(f"{place} bytes are announced, {size} are there")
    return tensors


def _short(key: str) -> str:
    return repr(key if len(key) <= 120 else f"{key[:120]}...")
