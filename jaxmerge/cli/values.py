"""What flags say, as the values of the options."""

import re
from collections.abc import Callable
from typing import Any

import typer


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return text.split(",")


def numbers(text: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        pieces = [piece for piece in re.split(r"[^\w.+-]+", text) if piece]
        plain = len(pieces) > 1 and all(map(is_number, pieces))
        hint = f"; write {','.join(pieces)}" if plain else ""
        raise typer.BadParameter(
            f"expected numbers separated by commas, got {text!r}{hint}"
        ) from None


def is_number(text: str) -> bool:
    """Whether a text is a number as people write it.

    >>> is_number("-.5"), is_number("2e-1"), is_number("nan")
    (True, True, False)
    """
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text) is not None


def rank(text: str) -> int | str:
    """A rank, or the word "auto"."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"expected a positive number or 'auto', got {text!r}")
    return int(text)


def axis(text: str) -> int | str:
    """The axis of stacked layers, or the word "none"."""
    if text not in ("0", "1", "none"):
        raise typer.BadParameter(f"expected 0, 1 or none, got {text!r}")
    return text if text == "none" else int(text)


def alpha(text: str) -> float | str:
    """A number, or the word "rank"."""
    try:
        return text if text == "rank" else float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number or 'rank', got {text!r}") from None


def alphas(entries: list[str]) -> Any:
    """One alpha for all modules, or a table by names."""
    return _one_or_table(entries, lambda entry: alpha(_value(entry)), "alpha")


def input_sizes(entries: list[str]) -> Any:
    """One size for all modules, or a table by names."""
    return _one_or_table(entries, _size, "size")


def _size(entry: str) -> int:
    if not _value(entry).isdecimal():
        raise typer.BadParameter(f"expected a size or name=size, got {entry!r}")
    return int(_value(entry))


def _value(entry: str) -> str:
    return entry.rpartition("=")[2]


def _one_or_table(entries: list[str], value_of: Callable[[str], Any], what: str) -> Any:
    found = {entry.rpartition("=")[0]: value_of(entry) for entry in entries}
    if "" not in found:
        return found
    if len(entries) > 1:
        raise typer.BadParameter(f"give one {what} for all modules, or {what}s by name")
    return found[""]


_UNITS = {
    "": 1,
    **{f"{unit}B": 1000**n for n, unit in enumerate("KMGT", start=1)},
    **{f"{unit}IB": 1024**n for n, unit in enumerate("KMGT", start=1)},
}


def byte_count(text: str) -> int:
    """A number of bytes: ``2GB``, ``1.5 GiB`` or ``800000000``.

    >>> byte_count("1.5 GiB"), byte_count("2gb"), byte_count("10")
    (1610612736, 2000000000, 10)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]I?B)?", text.strip().upper())
    if found is None or not float(found[1]):
        raise typer.BadParameter(
            f"expected a number of bytes such as 2GB or 800MiB, got {text!r}"
        )
    return int(float(found[1]) * _UNITS[found[2] or ""])
