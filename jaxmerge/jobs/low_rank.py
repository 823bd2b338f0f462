"""The leading directions of one difference of weights, exactly or nearly."""

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import jax

Method = Literal["auto", "exact", "randomised"]
_SMALL = 512  # the shorter side, up to which a whole decomposition costs little
_FIRST_RANK = 32  # that is tried for a share of the energy
_MARGIN = 10  # directions beyond those that are wanted
_Decomposed = tuple["jax.Array", "jax.Array", "jax.Array"]


class Wanted(NamedTuple):
    """What is wanted of every difference.

    Attributes:
      rank: number of directions; None where ``energy`` decides it.
      energy: share of the squared norm that is kept at least.
      method: of the decomposition.
      seed: of what is drawn at random.
    """

    rank: int | None
    energy: float | None
    method: Method
    seed: int


class Factors(NamedTuple):
    """b [m, k] and a [k, n], and the share of the squared norm that ``b @ a`` keeps."""

    b: np.ndarray
    a: np.ndarray
    energy: float


def factorise(x: np.ndarray, wanted: Wanted, module: str) -> Factors:
    """The best factors of a difference [m, n], to what its method leaves out.

    The norm is that of x itself, so the share is true whatever the method has missed.
    """
    import jax
    import jax.numpy as jnp

    from jaxmerge.linalg import svd
    from jaxmerge.randomised import randomised_svd

    total = math.fsum(_square(rows) for rows in np.array_split(x, 64))
    matrix, shorter = jnp.asarray(x), min(x.shape)
    key = jax.random.fold_in(
        jax.random.key(wanted.seed), zlib.crc32(module.encode()) >> 1
    )

    def directions(rank: int) -> _Decomposed:
        whole = shorter <= _SMALL or 2 * (rank + _MARGIN) >= shorter
        if wanted.method == "exact" or (wanted.method == "auto" and whole):
            return svd(matrix)
        return randomised_svd(matrix, rank=rank, key=key, oversampling=_MARGIN)

    if wanted.rank is not None:
        u, s, vt = (np.asarray(part) for part in directions(wanted.rank))
        return _cut(u, s, vt, min(wanted.rank, _nonzero(s)), total)
    return _share(directions, wanted.energy or 1.0, shorter, total)


def _share(
    directions: Callable[[int], _Decomposed],
    energy: float,
    shorter: int,
    total: float,
) -> Factors:
    """The fewest directions that keep a share, of ever more that are looked for."""
    rank = _FIRST_RANK
    while True:
        u, s, vt = (np.asarray(part) for part in directions(rank))
        kept = np.cumsum(np.square(s, dtype=np.float64)) / total
        enough = np.flatnonzero(kept >= energy)
        if len(enough):
            return _cut(u, s, vt, int(enough[0]) + 1, total)
        if len(s) > rank or rank >= shorter:  # all of them: what lacks is rounding
            return _cut(u, s, vt, _nonzero(s), total)
        rank = min(2 * rank, shorter)


def _square(x: np.ndarray) -> float:
    return float(np.sum(np.square(x, dtype=np.float64)))


def _nonzero(s: np.ndarray) -> int:
    return max(1, int(np.count_nonzero(s)))


def _cut(
    u: np.ndarray, s: np.ndarray, vt: np.ndarray, rank: int, total: float
) -> Factors:
    kept = _square(s[:rank]) / total
    root = np.sqrt(s[:rank])
    return Factors(u[:, :rank] * root, root[:, None] * vt[:rank], min(kept, 1.0))
