"""What the diagnostics of a set of adapters come to, in a few lines.

* An adapter `LOUD` times as large as the middle one, or as small, comes first: it
  outweighs the others in a sum, or is drowned by them.
* Overlaps count above those of random subspaces, ``(O - E) / (1 - E)``. Two tasks
  whose A overlap by `SAME_START` share their initial A, which is no sign of what they
  learned.
* Every other pair is judged by itself, and named: with both overlaps below
  `NEAR_RANDOM` it is as if random; one at least `CLEARLY` times the other is more
  shared, and shared B is the case that Pico was made for (arXiv 2604.16826); otherwise
  both are about equally shared.

Where there is a model, the reactions of its losses are called uneven from a condition
number of `UNEVEN` on, and those of single tasks different from a mean misalignment of
`APART` on, unless half of the inputs are as far from the other half. A Jacobian of a
rank below the number of tasks is uneven: no step moves one loss and leaves the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from jaxmerge.diagnostics.findings import Pair

if TYPE_CHECKING:
    from jaxmerge.diagnostics.reactions import Reactions

LOUD = 3.0
SAME_START = 0.5
NEAR_RANDOM = 0.02
CLEARLY = 1.5
UNEVEN = 3.0
APART = 0.5

Harm = Literal["none", "some", "high"]
_NAMED = 6  # pairs or tasks in one line, at most
_CALIBRATE = (
    "calibrate task arithmetic and learned merges with pico; TSV-M has gained nothing "
    "from it"
)


class Said(NamedTuple):
    """One statement of a verdict.

    Attributes:
      text: what is found, and what to do.
      harm: how much it disturbs a merge that does nothing about it.
    """

    text: str
    harm: Harm = "none"


class _Kind(NamedTuple):
    """Pairs of one kind: what they are called, and what follows for which method."""

    says: str
    then: str
    harm: Harm


_START = "same initial A"
_KINDS = {
    "B more shared": _Kind("B is more shared than A", _CALIBRATE, "some"),
    "B and A alike": _Kind(
        "B and A are about equally shared",
        "pico is worth a try with task arithmetic and learned merges, not with TSV-M",
        "some",
    ),
    "A more shared": _Kind(
        "A is more shared than B", "not the case that pico is made for", "some"
    ),
    "as if random": _Kind(
        "B and A overlap hardly more than random subspaces",
        "a sum (concat) loses little to interference",
        "none",
    ),
}


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
        return _START
    if max(b, a) < NEAR_RANDOM:
        return "as if random"
    if b >= CLEARLY * a:
        return "B more shared"
    return "A more shared" if a >= CLEARLY * b else "B and A alike"


def said_of_pair(pair: Pair) -> Said:
    """What two tasks share, and how much a merge suffers from it."""
    kind = of_pair(pair)
    return Said(kind, "some" if kind == _START else _KINDS[kind].harm)


def of_all(pairs: Sequence[Pair], norms: Mapping[str, float]) -> tuple[Said, ...]:
    """The verdict on all adapters; what disturbs a merge most comes first.

    Args:
      pairs: every two adapters that change a module in common.
      norms: task -> norm of its update.

    >>> (said,) = of_all([Pair(("x", "y"), 0.3, 0.0, 0.1, 0.0, 0.5, 0.0)], {})
    >>> said.text.partition("; ")[0]
    'B is more shared than A: x + y (0.30 against 0.10)'
    """
    said = _of_norms({task: norm for task, norm in norms.items() if norm > 0})
    if not pairs:
        says = (
            "no two adapters change a module of one name: if all are of one model, "
            "their sum keeps each as it is"
        )
        return (*said, Said(says))
    started = [pair for pair in pairs if of_pair(pair) == _START]
    said += [_of_start(group, started) for group in _groups(started)]
    for name, kind in _KINDS.items():
        found = [pair for pair in pairs if of_pair(pair) == name]
        if found:
            named = _listed([_numbers(pair, name) for pair in found])
            said.append(Said(f"{kind.says}: {named}; {kind.then}", kind.harm))
    return tuple(said)


def of_reactions(found: "Reactions") -> Said:
    """The verdict on how the losses react to the directions of the adapters."""
    if found.rank == 0:
        return Said(
            "no loss reacts to steps of the coefficients (J is zero): nothing can be "
            "learned from these inputs, on which every prediction may be certain",
            "high",
        )
    count = len(found.tasks)
    single, chance = found.mean_misalignment, found.mean_repeat
    uneven, apart = found.condition >= UNEVEN, single >= APART
    harm: Harm = "some" if uneven or apart else "none"
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
        return Said(f"{reacts}: {then}", harm)
    measured = f"(misalignment {single:.2f}"
    if np.isfinite(chance):
        measured += f", {chance:.2f} for one task on other inputs"
    if apart and single <= chance:
        more = "longer files of inputs" if found.notes else "more batches"
        return Said(
            f"{reacts}; whether single tasks call for different directions cannot be "
            f"told {measured}): take {more}",
            harm,
        )
    directions = f"{'different' if apart else 'much the same'} directions"
    text = f"{reacts} and single tasks call for {directions} {measured}): {then}"
    return Said(text, harm)


def _of_norms(norms: Mapping[str, float]) -> list[Said]:
    """Adapters that outweigh the others, or are drowned by them."""
    if len(norms) < 2:
        return []
    loud = {task: x for task, x in norms.items() if x >= LOUD * _middle(norms)}
    quiet = {task: x for task, x in norms.items() if x * LOUD <= _middle(norms)}
    others = {t: x for t, x in norms.items() if t not in loud and t not in quiet}
    if not loud and not quiet:
        return []
    them, all_of = ("it", "both") if len(norms) == 2 else ("them", "all")
    theirs = _span(others.values(), "{:.3g}")
    says = [
        f"{task} is {x / _middle(others):.3g} times as large as "
        f"{_the_others(others)} (norm {x:.3g} against {theirs}) and outweighs {them}"
        for task, x in loud.items()
    ]
    says += [
        f"{task} is {_middle(others) / x:.3g} times as small as "
        f"{_the_others(others)} (norm {x:.3g} against {theirs}) and is drowned"
        for task, x in quiet.items()
    ]
    weights = ", ".join(
        f"{1 if task in others else _middle(others) / x:.2g}"
        for task, x in norms.items()
    )
    says.append(f"weights {weights} make {all_of} alike")
    return [Said("; ".join(says), "high")]


def _middle(norms: Mapping[str, float]) -> float:
    """The norm in the middle; of two the smaller one."""
    return float(sorted(norms.values())[(len(norms) - 1) // 2])


def _the_others(names: Mapping[str, float]) -> str:
    return next(iter(names)) if len(names) == 1 else "the others"


def _groups(started: Sequence[Pair]) -> list[tuple[str, ...]]:
    """Tasks that are linked by pairs of one start."""
    groups: list[tuple[str, ...]] = []
    for pair in started:
        linked = [group for group in groups if set(group) & set(pair.tasks)]
        joined = [task for group in linked for task in group]
        joined += [task for task in pair.tasks if task not in joined]
        groups = [group for group in groups if group not in linked] + [tuple(joined)]
    return groups


def _of_start(group: tuple[str, ...], started: Sequence[Pair]) -> Said:
    pairs = [pair for pair in started if set(pair.tasks) <= set(group)]
    a, b = (pair.overlap_a for pair in pairs), (pair.overlap_b for pair in pairs)
    return Said(
        f"{_listed(group, ' and ')} share their initial A (overlap of A {_span(a)}, of "
        f"B {_span(b)}): not the case that pico is made for",
        "some",
    )


def _numbers(pair: Pair, kind: str) -> str:
    """A pair with its overlaps, the larger one first."""
    b, a = f"{pair.overlap_b:.2f}", f"{pair.overlap_a:.2f}"
    if kind == "A more shared":
        b, a = a, b
    between = "against" if kind.endswith("more shared") else "and"
    return f"{' + '.join(pair.tasks)} ({b} {between} {a})"


def _listed(names: Sequence[str], last: str = ", ") -> str:
    shown = names[:_NAMED]
    if len(names) > _NAMED:
        return f"{', '.join(shown)} and {len(names) - _NAMED} more"
    return last.join(part for part in (", ".join(shown[:-1]), shown[-1]) if part)


def _span(values: Iterable[float], digits: str = "{:.2f}") -> str:
    """Smallest and largest.

    >>> _span([0.981, 0.3]), _span([2.0])
    ('0.30 to 0.98', '2.00')
    """
    found = list(values)
    shown = [digits.format(x) for x in (min(found), max(found))]
    return shown[0] if shown[0] == shown[1] else " to ".join(shown)


def _above(overlap: float, random: float) -> float:
    return (overlap - random) / (1 - random) if random < 1 else 0.0
