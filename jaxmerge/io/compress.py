"""From merged updates to the factors that are written: rank, padding, dtype, losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from jaxmerge.io.errors import AdapterError
from jaxmerge.magnitudes import ordinary, peak, restored_factors
from jaxmerge.streamed import Streamed, described
from jaxmerge.types import LowRank, Update
from jaxmerge.updates import singular_value_decomposition

_ROWS = 1024  # of a factor, whose rounding errors are summed at a time


@dataclass(frozen=True)
class Compressed:
    """Factors of one module, b [m, k] and a [k, n], and what was lost on the way.

    Attributes:
      energy: share of the squared Frobenius norm that the factors keep; 1 is exact.
    """

    b: np.ndarray
    a: np.ndarray
    energy: float = 1.0

    @property
    def rank(self) -> int:
        """Columns of b, padding included."""
        return self.b.shape[1]

    def padded(self, rank: int) -> "Compressed":
        """The same update with zero columns and rows up to ``rank``."""
        more = rank - self.rank
        if not more:
            return self
        return Compressed(
            np.pad(self.b, ((0, 0), (0, more))),
            np.pad(self.a, ((0, more), (0, 0))),
            self.energy,
        )

    def error_of(self, rounded: "Compressed") -> float:
        """Relative error ``||b' a' - b a|| / ||b a||`` of the factors after a cast.

        From Gram matrices of ``(b' - b) a' + b (a' - a)``, whose terms are small:
        nothing cancels and no [m, n] array is formed. In float32, at O((m + n) k^2),
        some rows at a time.
        """
        if rounded.b.dtype == self.b.dtype and rounded.a.dtype == self.a.dtype:
            return 0.0
        b, a = _grams(self.b, rounded.b), _grams(self.a.T, rounded.a.T)
        lost = (
            _sum(b.moved, a.exact + a.across + a.across.T + a.moved)
            + _sum(b.exact, a.moved)
            + 2 * _sum(b.across, a.across.T + a.moved)
        )
        total = _sum(b.exact, a.exact)
        return float(np.sqrt(max(lost, 0.0) / total)) if total > 0 else 0.0


class _Grams(NamedTuple):
    """Gram matrices [k, k] of a factor x [p, k] and of what rounding changed in it."""

    exact: np.ndarray  # x.T x
    across: np.ndarray  # change.T x
    moved: np.ndarray  # change.T change


def _grams(factor: np.ndarray, rounded: np.ndarray) -> _Grams:
    """Gram matrices in float32, over the square of the largest magnitude."""
    largest = peak(factor) or 1.0
    k = factor.shape[1]
    found = _Grams(*(np.zeros((k, k), np.float32) for _ in range(3)))
    for start in range(0, len(factor), _ROWS):
        rows = factor[start : start + _ROWS]
        change = rounded[start : start + _ROWS].astype(rows.dtype) - rows
        x, moved = ((y / largest).astype(np.float32) for y in (rows, change))
        for total, left, right in zip(
            found, (x, moved, moved), (x, x, moved), strict=True
        ):
            total += left.T @ right
    return found


def _sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of the products of two matrices entry by entry."""
    return float(np.einsum("ij,ij->", x, y, dtype=np.float64))


class _Decomposed(NamedTuple):
    """Singular values of an update near to 1, and the powers of two it was moved by."""

    module: str
    u: np.ndarray
    s: np.ndarray
    vt: np.ndarray
    left: int
    right: int


def compress(
    updates: Mapping[str, Update],
    *,
    rank: int | None = None,
    energy: float | None = None,
    ragged: bool = False,
) -> Streamed[Compressed]:
    """Factors of every update, truncated if asked for; each truncation is optimal.

    Args:
      updates: module -> update; dense ones need ``rank`` or ``energy``. Where they are
        streamed, an energy makes them twice: once to find the ranks.
      rank: keep at most this many directions per module.
      energy: keep the fewest directions that hold this share of the squared norm: one
        number of directions for all modules, or with ``ragged`` one for each.

    Returns:
      module -> factors, made when they are asked for. Low-rank updates that are not
      truncated keep theirs.
    """

    def decompose(module: str) -> _Decomposed:
        return _decompose(module, updates[module])

    most: Mapping[str, int | None] = dict.fromkeys(updates, rank)
    if energy is not None:
        if not isinstance(updates, Streamed):
            decompose = cache(decompose)
        wanted = {module: _rank_for(decompose(module).s, energy) for module in updates}
        most = wanted if ragged else dict.fromkeys(wanted, max(wanted.values()))
    shapes = described(updates)

    def kept(module: str) -> int | None:
        """Directions that a truncation leaves; None where there is none."""
        shape, at_most = shapes[module], most[module]
        low_rank = isinstance(shape, LowRank)
        fits = low_rank and shape.b.shape[1] <= (at_most or 0)
        fits = low_rank and shape.b.shape[1] <= (at_most or 0)
        if at_most is None or (fits and energy is None):
            return None
        sides = (shape.b.shape[0], *shape.a.shape) if low_rank else shape.shape
        return min(at_most, *sides)

    def make(names: Sequence[str]) -> dict[str, Compressed]:
        found = {}
        for module in names:
            rank = kept(module)
            found[module] = (
                _factors(module, updates[module])
                if rank is None
                else _cut(decompose(module), rank)
            )
        return found

    def describe() -> dict[str, Compressed]:
        return {module: _described(shapes[module], kept(module)) for module in updates}

    return Streamed(([module] for module in updates), make, describe)


def _described(shape: Update, rank: int | None) -> Compressed:
    """Factors of an update of this shape without their values."""
    left, right = shape if isinstance(shape, LowRank) else (shape, shape)
    rank = left.shape[1] if rank is None else rank
    (m, n), dtype = (left.shape[0], right.shape[1]), np.dtype(left.dtype)
    return Compressed(blank((m, rank), dtype), blank((rank, n), dtype))


def blank(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that take no memory, for what is only asked its shape and dtype."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _factors(module: str, update: Update) -> Compressed:
    if not isinstance(update, LowRank):
        raise TypeError(f"module {module!r}: a dense update needs a rank or an energy")
    return Compressed(np.asarray(update.b), np.asarray(update.a))


def _decompose(module: str, update: Update) -> _Decomposed:
    near, left, right = ordinary(update)
    u, s, vt = (np.asarray(x) for x in singular_value_decomposition(near))
    if not np.isfinite(s).all():
        raise AdapterError(f"module {module!r}: its singular values are not finite")
    return _Decomposed(module, u, s, vt, left, right)


def _cut(found: _Decomposed, rank: int) -> Compressed:
    b, a = found.u[:, :rank] * found.s[:rank], found.vt[:rank]
    cut = restored_factors(b, a, found.left, found.right, module=found.module)
    return Compressed(*cut, float(_kept(found.s)[rank]))


def _rank_for(s: np.ndarray, energy: float) -> int:
    """The fewest directions, at least 1, that keep this share of the squared norm."""
    return max(int(np.argmax(_kept(s) >= energy)), 1)


def _kept(s: np.ndarray) -> np.ndarray:
    """Share of the squared norm in the first 0, 1, .., d directions; ends with 1."""
    sums = np.concatenate([[0.0], np.cumsum(s.astype(np.float64) ** 2)])
    return sums / sums[-1] if sums[-1] > 0 else np.ones_like(sums)
