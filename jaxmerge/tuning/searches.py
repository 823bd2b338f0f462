"""In which order merges are tried: grids, lines with golden section, CMA-ES.

A search is a generator. It gives points, is sent their losses (the lower the better,
infinite where a merge could not be scored), and depends on nothing else. So a search
that is made again asks for the same points, and a trace of what was tried resumes it.
"""

from collections.abc import Generator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np

from jaxmerge.refusals import Option, Refusal
from jaxmerge.tuning.families import Family, Point, decode_mask

Search = Generator[list[Point], Sequence[float], None]

GENERATIONS = 30  # of CMA-ES where no budget is given
_GOLDEN = (5**0.5 - 1) / 2
_STEP, _MASK_START = 0.5, -1.0  # ENMP's


def grid(family: Family, *, points: int) -> Search:
    """Every combination of ``points`` numbers of each range, the ends among them."""
    shares = np.linspace(0, 1, points).tolist()
    yield [family.point(x) for x in product(shares, repeat=len(family.ranges))]


def line(family: Family, *, points: int, refinements: int, passes: int = 3) -> Search:
    """One range after the other: a few numbers, then golden section at the best.

    The other ranges stay where they were best, at first in their middle; with several
    ranges this is repeated until nothing changes.

    Args:
      family: without masks.
      points: numbers of a range that are tried first, its ends among them.
      refinements: steps of golden section between the neighbours of the best of them.
      passes: how often the ranges are gone through, at most.
    """
    best = [0.5] * len(family.ranges)
    if not best:
        yield [family.point(best)]
    for _ in range(passes if len(best) > 1 else 1):
        before = list(best)
        for axis in reversed(range(len(best))):  # the scale first, if it is last
            best[axis] = yield from _along(family, best, axis, points, refinements)
        if best == before:
            return


def _along(
    family: Family, at: Sequence[float], axis: int, points: int, refinements: int
) -> Generator[list[Point], Sequence[float], float]:
    """The best share of one range, the others being where they are."""

    def there(share: float) -> Point:
        return family.point([*at[:axis], share, *at[axis + 1 :]])

    shares = np.linspace(0, 1, points).tolist()
    losses = yield [there(share) for share in shares]
    tried = dict(zip(shares, losses, strict=True))
    middle = int(np.argmin(losses))
    low, high = shares[max(middle - 1, 0)], shares[min(middle + 1, points - 1)]
    one, two = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    for _ in range(refinements):
        for share in (one, two):  # all but the first time one of them is known
            if share not in tried:
                (tried[share],) = yield [there(share)]
        if tried[one] <= tried[two]:
            high, two = two, one
            one = high - _GOLDEN * (high - low)
        else:
            low, one = one, two
            two = low + _GOLDEN * (high - low)
    return min(tried, key=tried.__getitem__)


def evolve(
    family: Family,
    *,
    seed: int,
    population: int | None = None,
    generations: int | None = GENERATIONS,
) -> Search:
    """CMA-ES over all ranges and masks together.

    A real number x stands for each range, of which it is the share ``1 / (1 + e^-x)``,
    and for each pair of a mask, see `decode_mask`. The search begins in the middle of
    the ranges with nothing left out, with a step of 0.5, as ENMP's.

    Args:
      family: with two or more numbers to find.
      seed: of its draws.
      population: points of a generation; unless given ``4 + 3 log(numbers)``.
      generations: None for no end.

    Raises:
      Refusal: one number only, or the library ``cmaes`` is not installed.
    """
    check_evolvable(family)
    library: Any = import_module("cmaes")
    masks = np.full(len(family.pairs), _MASK_START)
    start = np.concatenate([np.zeros(len(family.ranges)), masks])
    strategy = library.CMA(start, _STEP, seed=seed, population_size=population)
    done = 0
    while generations is None or done < generations:
        asked = [strategy.ask() for _ in range(strategy.population_size)]
        losses = yield [_decoded(family, x) for x in asked]
        worst = max([x for x in losses if np.isfinite(x)], default=0.0)
        finite = [x if np.isfinite(x) else worst + 1 for x in losses]
        strategy.tell(list(zip(asked, finite, strict=True)))
        done += 1
        if strategy.should_stop():
            return


def check_evolvable(family: Family) -> None:
    """Refuses what CMA-ES cannot search, before any work."""
    numbers = len(family.ranges) + len(family.pairs)
    if numbers < 2:
        raise Refusal(
            f"{family.pipeline}: CMA-ES searches two numbers or more, found {numbers}; "
            "leave out ",
            Option("search"),
        )
    if find_spec("cmaes") is None:
        raise Refusal(
            "CMA-ES needs cmaes; install it with pip install 'jaxmerge[tune]'"
        )


def _decoded(family: Family, x: np.ndarray) -> Point:
    ranges = len(family.ranges)
    mask = decode_mask(x[ranges:], share=family.share)
    left_out = [p for p, out in zip(family.pairs, mask, strict=True) if out]
    return family.point((1 / (1 + np.exp(-x[:ranges]))).tolist(), left_out)
