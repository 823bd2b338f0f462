"""What flags of reading say, as the values of the options."""

import re
from collections.abc import Mapping
from typing import Any

import typer

from jaxmerge.io.options import ReadOptions
from jaxmerge.refusals import Option


def axis(text: str) -> int:
    """The axis of stacked layers."""
    if text not in ("0", "1"):
        raise typer.BadParameter(
            f"expected 0, 1 or none, got {text!r}", param_hint="--scan-axis"
        )
    return int(text)


def alphas(entries: list[str]) -> Any:
    """One alpha for all modules, or a table by names."""
    found = {}
    for entry in entries:
        name, _, value = entry.rpartition("=")
        found[name] = alpha(value, "--lora-alpha")
    if "" not in found:
        return found or None
    if len(found) > 1 or len(entries) > 1:
        raise typer.BadParameter(
            "give one alpha for all modules, or alphas by name",
            param_hint="--lora-alpha",
        )
    return found[""]


def alpha(text: str | None, option: str) -> float | str | None:
    """A number, or the word "rank"."""
    if text in (None, "rank"):
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"expected a number or 'rank', got {text!r}", param_hint=option
        ) from None


def vera_inputs(entries: list[str]) -> int | dict[str, int] | None:
    """One size for all modules, or a table by names."""
    sizes = {}
    for entry in entries:
        name, _, count = entry.rpartition("=")
        if not count.isdecimal():
            raise typer.BadParameter(
                f"expected a size or name=size, got {entry!r}",
                param_hint="--vera-input",
            )
        sizes[name] = int(count)
    if "" not in sizes:
        return sizes or None
    if len(sizes) > 1:
        raise typer.BadParameter(
            "give one size for all modules, or sizes by name", param_hint="--vera-input"
        )
    return sizes[""]


def unlike_default(options: Mapping[str, Any]) -> list[Option]:
    """Options of `jaxmerge.merge` that are not its defaults, as they would be given.

    >>> unlike_default({"heads": "error", "lora_alpha": {"q": 8.0}})[0].value
    ('q=8.0',)
    """
    defaults = {**vars(ReadOptions()), "hub": False, "dense": "error"}
    changed = {k: v for k, v in options.items() if v != defaults.get(k)}
    return [Option(name, _as_text(value)) for name, value in changed.items()]


def _as_text(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, Mapping):
        return tuple(f"{name}={each}" for name, each in value.items())
    return tuple(value) if isinstance(value, tuple | list) else str(value)


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
