"""What a search moves in: pipelines with ranges, weights of tasks, and masks."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmerge.spec.varied import Range, Varied

_BLOCK = re.compile(r".*?\.\d+(?=\.)")  # up to the first number


class Point(NamedTuple):
    """One merge: what `jaxmerge.merge` is given to repeat it.

    Attributes:
      pipeline: its text.
      weights: one for each adapter, None for ones.
      left_out: pairs ``task@block``, see `jaxmerge.merge`.
    """

    pipeline: str
    weights: tuple[float, ...] | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Merges that differ in numbers, and in what is left out.

    Attributes:
      pipeline: without choices; its ranges come first among `ranges`.
      weights: a number or a range for each task; None for ones.
      pairs: what may be left out, ``task@block``; empty where nothing is masked.
      share: largest share of the pairs that is left out.
    """

    pipeline: Varied
    weights: tuple[float | Range, ...] | None = None
    pairs: tuple[str, ...] = ()
    share: float = 0.0

    @property
    def ranges(self) -> tuple[Range, ...]:
        """What is searched in numbers."""
        weights = [w for w in self.weights or () if isinstance(w, Range)]
        return (*self.pipeline.ranges, *weights)

    def point(self, shares: Sequence[float], left_out: Sequence[str] = ()) -> Point:
        """The merge at some shares of the way through every range.

        >>> from jaxmerge.spec.varied import vary
        >>> family = Family(vary("concat|scale({0.1:10})"))
        >>> family.point([0.5]).pipeline
        'concat|scale(1.0)'
        """
        values = [r.at(x) for r, x in zip(self.ranges, shares, strict=True)]
        inside = len(self.pipeline.ranges)
        pipeline = self.pipeline.at(values[:inside])
        weights, drawn = None, iter(values[inside:])
        if self.weights is not None:
            weights = tuple(
                next(drawn) if isinstance(w, Range) else w for w in self.weights
            )
        return Point(pipeline.text, weights, tuple(left_out))


def mask_pairs(modules: Iterable[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """Every pair of a block and a task, ``task@block``, block by block.

    A block is what the name of a module begins with up to its first number; a module
    without one is a block by itself.

    >>> names = ["encoder.layers.0.q_proj", "encoder.layers.0.v_proj", "pooler"]
    >>> mask_pairs(names, ["cars", "dtd"])
    ('cars@encoder.layers.0', 'dtd@encoder.layers.0', 'cars@pooler', 'dtd@pooler')
    """
    found = ((_BLOCK.match(module), module) for module in modules)
    blocks = dict.fromkeys(match[0] if match else module for match, module in found)
    return tuple(f"{task}@{block}" for block in blocks for task in tasks)


def decode_mask(values: np.ndarray, *, share: float) -> np.ndarray:
    """Which pairs are left out (ENMP, arXiv 2604.17753): bool [N].

    Of the ``floor(share * N)`` largest values those above 0. So nothing is left out
    where a search begins, at -1 everywhere.

    Args:
      values: [N], any real numbers.
      share: in [0, 1].

    >>> decode_mask(np.array([0.5, -1.0, 0.1, 0.9, -0.2]), share=0.4).tolist()
    [True, False, False, True, False]
    """
    most = int(share * len(values) + 1e-9)  # 0.29 of 100 are 29
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(-values, kind="stable")[:most]] = True
    return chosen & (values > 0)
