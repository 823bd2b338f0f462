"""Which tests of a product `make test` asks; `make thorough` asks all of them."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import cycle, islice, product
from typing import Any

import pytest

THOROUGH = pytest.mark.thorough


def in_turn(first: Sequence, *others: Sequence, quick: int = 0) -> list:
    """Parameters of a product: each of the first with one of the rest in turn is quick.

    So each of the first list is asked, and each combination of the other lists; all
    else is thorough. With ``quick`` only so many of the first, spread evenly over them.
    """
    combinations = list(product(*others))
    spread = [first[i * len(first) // quick] for i in range(quick)] if quick else first
    count = max(len(spread), len(combinations))
    chosen = set(islice(zip(cycle(spread), cycle(combinations), strict=False), count))
    return [
        pytest.param(name, *rest, marks=() if (name, rest) in chosen else THOROUGH)
        for name, rest in product(first, combinations)
    ]


def covering(items: Iterable[Any], facts: Callable[[Any], set[Hashable]]) -> list[Any]:
    """Few of some items, taken greedily, that have every fact of any of them.

    Among those that add as many facts the first one is taken.
    """
    left = {item: facts(item) for item in items}
    chosen: list[Any] = []
    while any(left.values()):
        best = max(left, key=lambda item: len(left[item]))
        chosen.append(best)
        new = left.pop(best)
        left = {item: others - new for item, others in left.items()}
    return chosen
