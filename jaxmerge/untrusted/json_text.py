"""JSON of unknown origin: bounded before it is read, every key once, text only."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST = 64 * 2**20  # bytes of a file; a record names every module of every adapter
MOST = 2_000_000  # values in one file; a list of empty lists takes 40 times its bytes
_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


def read_json(path: Path, *, largest: int = LARGEST, most: int = MOST) -> Any:
    """The value in a file.

    Raises:
      OSError: the file cannot be read.
      ValueError: as for `parse_json`.
    """
    return parse_json(read_bounded(path, largest), most=most)


def read_bounded(path: Path, largest: int) -> bytes:
    """What is in a file; ValueError for more than ``largest`` bytes."""
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"too large, more than {largest >> 20} MiB")
    return data


def parse_json(
    data: bytes,
    *,
    most: int = MOST,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of a text in UTF-8, in time and memory proportional to its length.

    Args:
      data: the text, with or without a byte order mark.
      most: largest number of values in it.
      pairs: what makes a value of the keys and values of an object, none of which
        occurs twice; a dictionary unless given.

    Raises:
      ValueError: says what is wrong with the text.
    """
    # Every value but the first stands behind one of these; those in strings count too.
    if sum(map(data.count, (b",", b"[", b"{"))) > most:
        raise ValueError(f"holds more than {most} values")

    def unique(found: list[tuple[str, Any]]) -> Any:
        table = dict(found)
        if len(table) < len(found):
            raise ValueError("a key occurs twice in one object")
        return table if pairs is None else pairs(found)

    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 ({error.reason})") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if _HALF.search(data):
        _refuse_halves(value)
    return value


def _refuse_halves(value: Any) -> None:
    """Refuses texts with half a character, which could not be written to a file."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text holds half a character") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
