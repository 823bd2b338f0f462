"""What the diagnostics of a set of adapters come to, in one line.

The rule compares overlaps above those of random subspaces, ``(O - E) / (1 - E)``:

* two tasks whose A overlap above `SAME_START` are said to share their initial A;
* of the other pairs (of all, if there is no other) the means for B and for A count;
* both below `NEAR_RANDOM`: the adapters are about as independent as random ones;
* one at least `CLEARLY` times the other: that one is more shared. Shared B is the
  case that Pico was made for (arXiv 2604.16826);
* otherwise both are about equally shared.

Where there is a model, the reactions of its losses are called uneven from a condition
number of `UNEVEN` on, and those of single tasks different from a mean misalignment of
`APART` on, unless half of the inputs are as far from the other half. A Jacobian of a
rank below the number of tasks is uneven: no step moves one loss and leaves the others.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxmerge.diagnostics.findings import Pair

if TYPE_CHECKING:
    from jaxmerge.diagnostics.reactions import Reactions

SAME_START = 0.5
NEAR_RANDOM = 0.02
CLEARLY = 1.5
UNEVEN = 3.0
APART = 0.5


def above(pair: Pair) -> tuple[float, float]:
    """Overlaps of B and of A, above those of random subspaces.

    >>> above(Pair(("x", "y"), 0.4, 0.2, 0.1, 0.1, 0.5, 0.0))
    (0.25, 0.0)
    """
    return (
        _above(pair.overlap_b, pair.random_b),
        _above(pair.overlap_a, pair.random_a),
    )


def of_pair(pair: Pair) -> str:
    """What two tasks share, in a few words."""
    b, a = above(pair)
    if a >= SAME_START:
        return "same initial A"
    match _more_shared(b, a):
        case "":
            return "B and A alike"
        case None:
            return "as if random"
        case more:
            return f"{more} more shared"


def of_all(pairs: Sequence[Pair]) -> str:
    """The verdict on all adapters.

    >>> of_all([Pair(("x", "y"), 0.31, 0.01, 0.12, 0.01, 0.5, 0.0)])
    'B is more shared than A (0.31 against 0.12): calibrate with pico'
    """
    if not pairs:
        return "no two adapters change the same module: their sum is exact"
    started = [pair for pair in pairs if above(pair)[1] >= SAME_START]
    others = [pair for pair in pairs if pair not in started]
    if not started or not others:
        return _comparison(pairs)
    names = " and ".join(started[0].tasks)
    if len(started) > 1:
        names = f"{len(started)} of {len(pairs)} pairs, such as {names},"
    overlap = np.mean([pair.overlap_a for pair in started])
    start = f"{names} share their initial A (overlap {overlap:.2f})"
    return f"{start}; for the other pairs {_comparison(others)}"


def of_reactions(found: "Reactions") -> str:
    """The verdict on how the losses react to the directions of the adapters."""
    if found.rank == 0:
        return (
            "no loss reacts to steps of the coefficients (J is zero): nothing can be "
            "learned from these inputs, on which every prediction may be certain"
        )
    count = len(found.tasks)
    single, chance = found.mean_misalignment, found.mean_repeat
    uneven, apart = found.condition >= UNEVEN, single >= APART
    evenly = "unevenly" if uneven else "about evenly"
    measure = f"condition number {found.condition:.1f}"
    if found.rank < count:
        still = np.delete(found.tasks, found.reacting)
        measure = f"J has rank {found.rank} of {count}: " + (
            f"that of {' and of '.join(still)} does not move"
            if len(still)
            else "they do not move independently"
        )
    reacts = f"losses react {evenly} to steps of the coefficients ({measure})"
    then = (
        "one coefficient for each task is coarse, learn one for each direction (tara_a)"
        if uneven or apart
        else "one coefficient for each task may do (adamerging)"
    )
    if np.isnan(single):
        return f"{reacts}: {then}"
    measured = f"(misalignment {single:.2f}"
    if np.isfinite(chance):
        measured += f", {chance:.2f} for one task on other inputs"
    if apart and single <= chance:
        more = "longer files of inputs" if found.notes else "more --batches"
        return (
            f"{reacts}; whether single tasks call for different directions cannot be "
            f"told {measured}): take {more}"
        )
    directions = f"{'different' if apart else 'much the same'} directions"
    return f"{reacts} and single tasks call for {directions} {measured}): {then}"


def _comparison(pairs: Sequence[Pair]) -> str:
    b, a = np.mean([above(pair) for pair in pairs], axis=0)
    mean_b = np.mean([pair.overlap_b for pair in pairs])
    mean_a = np.mean([pair.overlap_a for pair in pairs])
    match _more_shared(b, a):
        case "B":
            says, then = "B is more shared than A", "calibrate with pico"
            found = f"{mean_b:.2f} against {mean_a:.2f}"
        case "A":
            says, then = "A is more shared than B", "not the case pico is made for"
            if a >= SAME_START:
                says = "all started from one A, which is more shared than B"
            found = f"{mean_a:.2f} against {mean_b:.2f}"
        case "":
            says, then = "B and A are about equally shared", "pico is worth a try"
            found = f"{mean_b:.2f} and {mean_a:.2f}"
        case _:
            says = "B and A overlap hardly more than random subspaces"
            then = "concat loses little to interference"
            found = f"{mean_b:.2f} and {mean_a:.2f}"
    return f"{says} ({found}): {then}"


def _more_shared(b: float, a: float) -> str | None:
    """'B', 'A', '' for about equal, None for near random; of overlaps above random."""
    if max(b, a) < NEAR_RANDOM:
        return None
    if b >= CLEARLY * a:
        return "B"
    if a >= CLEARLY * b:
        return "A"
    return ""


def _above(overlap: float, random: float) -> float:
    return (overlap - random) / (1 - random) if random < 1 else 0.0
