"""Merged updates back into the arrays of a tree, exactly, at low rank."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxmerge.io.bridges.alphas import alphas_of
from jaxmerge.io.bridges.pairs import Pair, TreePath
from jaxmerge.io.bridges.table import Bridge
from jaxmerge.io.errors import AdapterError, given, listing
from jaxmerge.io.options import Alpha
from jaxmerge.refusals import Option

Factors = tuple[np.ndarray, np.ndarray]  # B [m, r] and A [r, n], float32


def new_pairs(updates: Mapping[str, Factors], bridge: Bridge) -> tuple[Pair, ...]:
    """Pairs of a tree that is made anew, a module a layer, as the library names it.

    Raises:
      AdapterError: the library has shapes or names that only its model tells.
    """
    if bridge.new_paths is None:
        raise AdapterError(
            f"{bridge.says} has axes of heads and names that only the tree of its "
            "model tells; pass ",
            Option("like", "<tree>"),
        )
    pairs = []
    for name, (b, a) in updates.items():
        module = tuple(name.split("."))
        path_a, path_b = bridge.new_paths(module)
        shape = {"inputs": a.shape[1:], "outputs": b.shape[:1], "rank": 1}
        pairs.append(
            Pair(
                module=module, a=path_a, b=path_b, axis=None, layers=((name,),), **shape
            )
        )
    return tuple(pairs)


def woven(
    updates: Mapping[str, Factors],
    pairs: Sequence[Pair],
    bridge: Bridge,
    *,
    alpha: Alpha | None,
    rank: int | None,
    where: object,
    option: str = "lora_alpha",
) -> dict[TreePath, np.ndarray]:
    """The arrays of a tree that are the given updates; those of other modules are zero.

    Directions that are zero are left out. Modules of the tree that have one rank keep
    one: that which the largest of their updates needs, at least the one they had. What
    is alike in a of modules that share it stays shared, else their ranks add up.

    Costs O((m + n) r) for each module.

    Args:
      updates: module -> B [m, r] and A [r, n].
      pairs: the arrays of the tree.
      bridge: whose tree it is.
      alpha: with which the library will multiply ``a @ b / rank``.
      rank: of every module instead.
      where: the tree, for messages.
      option: what the caller calls alpha.

    Raises:
      AdapterError: a module for which the tree has no place or another shape, an update
        of a larger rank, a missing alpha, a value that is not finite.
    """
    _check_modules(updates, pairs, where)
    joined = [[_joined(updates, p, names) for names in p.layers] for p in pairs]
    ranks = _ranks(pairs, joined, rank, where)
    pairs = [replace(p, rank=r) for p, r in zip(pairs, ranks, strict=True)]
    alphas = alphas_of(pairs, alpha, bridge, where, option)
    found: dict[TreePath, np.ndarray] = {}
    for pair, layers in zip(pairs, joined, strict=True):
        padded = []
        for names, (b, a) in zip(pair.layers, layers, strict=True):
            scale = alphas[names[0]] / pair.rank
            missing = pair.rank - len(a)
            padded.append(
                (
                    np.pad(b / np.float32(scale), ((0, 0), (0, missing))),
                    np.pad(a, ((0, missing), (0, 0))),
                )
            )
        found[pair.a], found[pair.b] = pair.arrays(padded)
        if not all(np.isfinite(found[path]).all() for path in (pair.a, pair.b)):
            raise AdapterError(
                f"{where}: module {'/'.join(pair.module)!r}: its factors, divided by "
                "alpha / rank, are not finite"
            )
    return found


def _check_modules(
    updates: Mapping[str, Factors], pairs: Sequence[Pair], where: object
) -> None:
    places = {name: pair for pair in pairs for layer in pair.layers for name in layer}
    unknown = [name for name in updates if name not in places]
    if unknown:
        raise AdapterError(
            f"{where}: the tree has no place for {listing(unknown)}; it adapts "
            f"{listing(places)}"
        )
    for name, (b, a) in updates.items():
        shape, expected = (b.shape[0], a.shape[1]), places[name].shape
        if shape != expected:
            raise AdapterError(
                f"{where}: module {name!r} is {expected} in the tree, but its update "
                f"is {shape}"
            )


def _joined(
    updates: Mapping[str, Factors], pair: Pair, names: tuple[str, ...]
) -> Factors:
    """The update of a layer: of its modules above each other, which share one A."""
    m, n = pair.shape
    parts = [updates.get(name) for name in names]
    given_a = [part[1] for part in parts if part is not None]
    if not given_a:
        empty = np.zeros((m * len(names), 0), np.float32)
        return empty, np.zeros((0, n), np.float32)
    if all(np.array_equal(a, given_a[0]) for a in given_a):
        a = given_a[0]
        rows = [np.zeros((m, len(a)), np.float32) if p is None else p[0] for p in parts]
        return _trimmed(np.concatenate(rows), a)
    a = np.concatenate(given_a)
    b = np.zeros((m * len(names), len(a)), np.float32)
    done = 0
    for place, part in enumerate(parts):
        if part is not None:
            width = len(part[1])
            b[place * m : (place + 1) * m, done : done + width] = part[0]
            done += width
    return _trimmed(b, a)


def _trimmed(b: np.ndarray, a: np.ndarray) -> Factors:
    """Factors without the directions that are zero, such as padding."""
    kept = b.any(axis=0) & a.any(axis=1)
    return b[:, kept], a[kept]


def _ranks(
    pairs: Sequence[Pair],
    joined: Sequence[Sequence[Factors]],
    rank: int | None,
    where: object,
) -> list[int]:
    """The rank of every pair in the tree."""
    needed = [max(len(a) for _, a in layers) for layers in joined]
    if rank is None:
        largest: dict[int, int] = {}
        for pair, least in zip(pairs, needed, strict=True):
            largest[pair.rank] = max(pair.rank, largest.get(pair.rank, 0), least)
        return [largest[pair.rank] for pair in pairs]
    if type(rank) is not int or rank < 1:
        raise AdapterError(given("rank", rank), ": expected a positive integer")
    for pair, least in zip(pairs, needed, strict=True):
        if least > rank:
            raise AdapterError(
                f"{where}: module {'/'.join(pair.module)!r} needs rank {least}, more "
                f"than {rank}; truncate the merge to rank {rank}, or give ",
                Option("rank", str(least)),
            )
    return [rank] * len(pairs)
