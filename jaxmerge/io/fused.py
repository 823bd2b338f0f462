"""A fused layer of one adapter beside its parts in another.

``qkv_proj`` is ``q_proj``, ``k_proj`` and ``v_proj`` in one matrix, ``gate_up_proj`` is
``gate_proj`` and ``up_proj``. A model has the one or the others. In which order a fused
matrix holds its parts, and how many rows each has, is not in the files.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from jaxmerge.io.aliases import Shapes, aliases

_ATTENTION = re.compile(
    r"(?:to_|attn_|in_proj_|w_?)?([qkvz]{1,4})(?:_proj|_lin|_linear)?"
)
_WORDS = re.compile(
    r"(?:query|key|value)(?:_(?:query|key|value)){0,2}(?:_proj|_layer)?"
)
_GATED = re.compile(r"(gate|up)(?:_(?:and_)?(gate|up))?_(?:proj|linear)")
_NUMBERED = re.compile(r"w_?(\d)_?(\d)?")
_MOST = 16  # modules that divide one layer of a model; more are of no model
_NAMED = {
    **dict.fromkeys(("c_attn", "w_pack", "in_proj", "qkvw"), frozenset("qkv")),
    **dict.fromkeys(("dense_h_to_4h", "input_linear"), frozenset({"gate", "up"})),
}


class Fused(NamedTuple):
    """A module of one adapter that holds what another adapter has as its own module.

    Attributes:
      adapters: the places of the two.
      names: of the module in the one and in the other.
      whole: which of the two holds more; None if both hold the same.
    """

    adapters: tuple[int, int]
    names: tuple[str, str]
    whole: int | None


def parts_of(name: str) -> frozenset[str]:
    """What the last piece of a name says that a layer computes; empty if nothing.

    >>> sorted(parts_of("h.0.attn.qkv_proj")), sorted(parts_of("h.0.mlp.gate_up_proj"))
    (['k', 'q', 'v'], ['gate', 'up'])
    >>> sorted(parts_of("h.0.attn.query")), sorted(parts_of("h.0.attn.out_proj"))
    (['q'], [])
    """
    return _parts_of_leaf(_leaf(name).lower())


@functools.lru_cache(maxsize=1024)
def _parts_of_leaf(leaf: str) -> frozenset[str]:
    if leaf in _NAMED:
        return _NAMED[leaf]
    if found := _ATTENTION.fullmatch(leaf):
        return frozenset(found[1])
    if _WORDS.fullmatch(leaf):
        return frozenset(word[0] for word in re.findall("query|key|value", leaf))
    if found := _GATED.fullmatch(leaf):
        return frozenset(filter(None, found.groups()))
    if found := _NUMBERED.fullmatch(leaf):
        return frozenset(f"w{number}" for number in found.groups() if number)
    return frozenset()


def fused_beside_parts(adapters: Sequence[Shapes]) -> Iterator[Fused]:
    """For every two adapters one layer that they divide differently, if there is any.

    Args:
      adapters: module -> shape of its update, of each adapter.
    """
    layers = [_by_layer(adapter) for adapter in adapters]
    together = functools.cache(lambda: _together(layers))
    for first, second in combinations(range(len(adapters)), 2):
        mine, theirs = layers[first], layers[second]
        same = [(x, x) for x in mine if x in theirs and mine[x] != theirs[x]]
        places = [dict.fromkeys(layer, (0, 0)) for layer in (mine, theirs)]
        for alias in aliases(places):
            before, one, other = alias.changes[0]
            if not (one and other) or any(map(str.isdecimal, before.split("."))):
                same += alias.pairs.items()
        for here, there in same:
            found = _divided(mine[here], theirs[there], together)
            if found is not None:
                sizes = [len(parts_of(name)) for name in found]
                whole = None if sizes[0] == sizes[1] else sizes.index(max(sizes))
                yield Fused((first, second), found, whole)
                break


def _by_layer(adapter: Shapes) -> dict[str, list[str]]:
    """Place of a layer, such as ``h.0.attn.[qkvz]`` -> the modules that divide it."""
    found: dict[str, list[str]] = {}
    for name in adapter:
        parts = parts_of(name)
        if parts:
            family = "attention" if parts <= set("qkvz") else "feed_forward"
            found.setdefault(f"{name.rpartition('.')[0]}.{family}", []).append(name)
    return {layer: names for layer, names in found.items() if len(names) <= _MOST}


def _together(layers: Sequence[Mapping[str, Sequence[str]]]) -> set[frozenset[str]]:
    """The ends of names that stand in one layer of one adapter."""
    return {
        frozenset((_leaf(one), _leaf(other)))
        for layer in layers
        for names in layer.values()
        for one, other in combinations(names, 2)
    }


def _divided(
    mine: Sequence[str],
    theirs: Sequence[str],
    together: Callable[[], set[frozenset[str]]],
) -> tuple[str, str] | None:
    for one in mine:
        for other in theirs:
            leaves = frozenset((_leaf(one), _leaf(other)))
            overlap = len(leaves) > 1 and parts_of(one) & parts_of(other)
            if overlap and leaves not in together():
                return one, other
    return None


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
