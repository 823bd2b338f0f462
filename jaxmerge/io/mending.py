"""Which prefixes bring the names of all adapters to one form, if any do."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from jaxmerge.io.aliases import Alias, Shapes, aliases, kind_of
from jaxmerge.io.prefixes import prefix_change


class Prefixes(NamedTuple):
    """Values of ``strip_prefix`` and ``add_prefix``."""

    strip: str
    add: str


def mending_prefixes(
    alias: Alias, adapters: Sequence[Shapes], heads: Sequence[Collection[str]]
) -> list[Prefixes]:
    """Prefixes under which no module has two names, and nothing else is renamed.

    The longer of the two forms is given up in the first, if both are possible.

    Args:
      alias: what they are to mend.
      adapters: module -> shape of its update, of each adapter.
      heads: names of the saved tensors of each adapter.
    """
    found = [p for p in _candidates(alias) if _mends(p, alias, adapters, heads)]
    return list(dict.fromkeys(found))


def _candidates(alias: Alias) -> Iterator[Prefixes]:
    for before, mine, theirs in alias.changes:
        forms = sorted((before + mine, before + theirs), key=len)
        yield Prefixes(strip=forms[1], add=forms[0])
        yield Prefixes(strip=forms[0], add=forms[1])


def _mends(
    prefixes: Prefixes,
    alias: Alias,
    adapters: Sequence[Shapes],
    heads: Sequence[Collection[str]],
) -> bool:
    strip, add = prefixes
    longer = add if add.startswith(strip) else ""
    changed: dict[str, str] = {}
    for modules, saved in zip(adapters, heads, strict=True):
        names = [*modules, *saved]
        change = prefix_change(names, strip_prefix=strip, add_prefix=add)
        new = {name: change(name) for name in names}
        moved = [name for name in names if new[name] != name]
        if len(set(new.values())) < len(set(names)):
            return False
        if longer and moved and any(name.startswith(longer) for name in names):
            return False  # what lies beside the longer form would move into it
        if any(changed.get(name, new[name]) != new[name] for name in names):
            return False  # what two adapters name alike would part
        changed |= new
    mine, theirs = alias.names
    if kind_of(changed[mine]) != kind_of(changed[theirs]):
        return False
    return not aliases([{changed[n]: s for n, s in a.items()} for a in adapters])
