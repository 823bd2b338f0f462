"""Alpha of every module of a tree, which the libraries of JAX do not store."""

from collections.abc import Iterable, Mapping
from typing import Literal

from jaxmerge.io.bridges.pairs import Pair
from jaxmerge.io.bridges.table import Bridge
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.options import Alpha
from jaxmerge.io.pattern_table import PatternTable
from jaxmerge.refusals import Option

One = float | Literal["rank"]


def alphas_of(
    pairs: Iterable[Pair],
    alpha: Alpha | None,
    bridge: Bridge,
    where: object,
    option: str = "lora_alpha",
) -> dict[str, float]:
    """Module -> alpha; AdapterError where it is not known.

    Args:
      pairs: the factors.
      alpha: of all modules; "rank" for a scale of 1; or a table of these by patterns of
        names as `_of_name` reads them.
      bridge: whose factors they are.
      where: the tree, for messages.
      option: what the caller calls alpha.
    """
    pairs = list(pairs)
    if alpha is None:
        raise AdapterError(
            f"{where}: {bridge.says} holds no alpha", *_remedy(bridge, option)
        )
    found: dict[str, One | None] = {}
    ranks: dict[str, int] = {}
    table = _table(alpha, where)
    for pair in pairs:
        for name in (name for layer in pair.layers for name in layer):
            found[name] = _of_name(alpha, table, (".".join(pair.module), name))
            ranks[name] = pair.rank
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise AdapterError(
            f"{where}: the table of alphas has none for {listing(missing)}",
            *_remedy(bridge, option),
        )
    return {
        name: float(ranks[name] if value in (None, "rank") else value)
        for name, value in found.items()
    }


def _table(alpha: Alpha, where: object) -> PatternTable:
    keys = alpha if isinstance(alpha, Mapping) else ()
    try:
        return PatternTable([_dotted(key) for key in keys])
    except ValueError as error:
        raise AdapterError(f"{where}: the table of alphas: {error}") from error


def _of_name(alpha: Alpha, table: PatternTable, names: Iterable[str]) -> One | None:
    """The alpha of a module: of the first pattern that fits the end of one its names.

    The names are that in the tree, where a slash in a pattern stands for a dot, and
    that of the merge.
    """
    if not isinstance(alpha, Mapping):
        return alpha if isinstance(alpha, float | int) else "rank"
    by_key: dict[str, One] = {_dotted(key): value for key, value in alpha.items()}
    keys = (table.first(name) for name in names)
    return next((by_key[key] for key in keys if key is not None), None)


def _dotted(pattern: str) -> str:
    return pattern.replace("/", ".")


def _remedy(bridge: Bridge, option: str) -> tuple[str | Option, ...]:
    unscaled = (
        "; the library itself multiplies by nothing, which is "
        if bridge.unscaled
        else "; a scale of 1 is "
    )
    return (
        ", so the scale of its updates is unknown; pass ",
        Option(option, "<number>"),
        " as in the training, or one by name, ",
        Option(option, ("NAME=NUMBER",), tabled=True),
        unscaled,
        Option(option, "rank", quoted=True),
    )
