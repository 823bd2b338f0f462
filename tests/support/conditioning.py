"""How far rounding moves a result that depends on singular directions.

A matrix is known up to rounding errors of about its largest singular value. They turn
every pair of singular directions into each other, by an angle of the error over the
difference of their values. So what depends on directions of nearly equal values is
known less well than the matrix, by a factor that the values tell.

The functions give this factor from data in double precision: to first order, with
errors of size 1 in all pairs of directions alike. `rounding` makes a tolerance of it.
"""

from collections.abc import Sequence

import numpy as np

import jaxmerge as jm

FEW = 5  # routines err by a few units in the last place, not by one
EPSILON = float(np.finfo(np.float32).eps)
WIDEST = 1e-2  # of all tolerances: with a wider one an error of a percent would pass
NULL = 1e-9  # of the largest singular value


def rounding(moves: float) -> float:
    """Tolerance for a result in single precision that moves by so many errors."""
    return FEW * EPSILON * float(moves)


def polar(values: np.ndarray) -> float:
    """Of the polar factor of a matrix, relative: root mean square of ``s_0 / s_i``."""
    return float(np.sqrt(np.mean(np.square(values[0] / values))))


def directions(values: np.ndarray) -> np.ndarray:
    """Of every single singular vector, [k], 0 for null directions.

    Args:
      values: [k], descending, zeros for null directions.
    """
    out_of_all = values[0] / np.where(values > NULL * values[0], values, np.inf)
    return np.hypot(np.linalg.norm(_turning(values), axis=0), out_of_all)


def projector(values: np.ndarray, rank: int) -> float:
    """Of the projector onto the last ``rank`` of all right singular vectors.

    Args:
      values: all singular values, descending, with zeros for a null space.
      rank: how many directions are projected on.
    """
    gaps = values[:-rank, None] - values[-rank:]
    return 2**0.5 * _together(values[0] / gaps)


def entrywise(values: np.ndarray, coordinates: np.ndarray) -> float:
    """Of ``U X``, if X was merged entry by entry in the singular basis U.

    Args:
      values: [p] singular values that belong to U.
      coordinates: X, [p, q].
    """
    sizes = np.linalg.norm(coordinates, axis=1)
    return _together(np.triu(_turning(values) * np.maximum.outer(sizes, sizes)))


def truncation(
    matrix: np.ndarray,
    rank: int,
    *,
    basis: np.ndarray | None = None,
    size: float | None = None,
) -> float:
    """Of ``basis @ X_rank``, X_rank the best approximation of X of a rank.

    A kept direction i and a lost direction j move it by ``s_i / (s_i - s_j)``.

    Args:
      matrix: X, [p, q].
      rank: how many directions are kept.
      basis: [m, p] with orthogonal columns; orthonormal unless given. Rows of X that
        belong to short columns were divided by their lengths, and so were the errors.
      size: of an error before that; the norm of X unless given.
    """
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    heard, noise = _in_basis(u, basis)
    size = s[0] if size is None else size
    kept, lost = s[:rank, None], s[rank:]
    exist = np.broadcast_to(kept > NULL * s[0], (len(kept), len(lost)))
    share = np.where(exist, kept / np.where(exist, kept - lost, 1), 0)
    both = [np.maximum.outer(x[:rank], x[rank:]) for x in (heard, noise)]
    return size * max(1.0, _together(share * both[0] * both[1]))


def task_singular_vectors(
    matrices: Sequence[np.ndarray],
    ranks: Sequence[int],
    *,
    basis: np.ndarray | None = None,
    size: float | None = None,
) -> float:
    """Of ``basis @ U' S V'``, U' and V' being the polar factors of all tasks' vectors.

    The vectors of triplet i of a task move by ``1 / (s_i - s)``, s being the first
    value that is left out. The polar factor divides what moves along a combination of
    vectors by the singular value of that combination, and it is heard as loud as the
    values of S in it.

    Args:
      matrices: T matrices [p, q].
      ranks: how many triplets of each.
      basis: see `truncation`.
      size: see `truncation`.
    """
    left, right, values, noise, heard = [], [], [], [], []
    for matrix, rank in zip(matrices, ranks, strict=True):
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        loud, errors = _in_basis(u, basis)
        gaps = s[:rank] - (s[rank] if rank < len(s) else 0)
        left.append(u[:, :rank])
        right.append(vt[:rank])
        values.append(s[:rank])
        noise.append((s[0] if size is None else size) * errors[:rank] / gaps)
        heard.append(loud[:rank])
    noise, values, heard = map(np.concatenate, (noise, values, heard))
    return float(
        np.hypot(
            _polar_factor(np.concatenate(left, axis=1), noise, values * heard.max()),
            _polar_factor(np.concatenate(right).T, noise, values * heard),
        )
    )


def cart(space: jm.Space, stack: jm.AdapterStack, *, rank: int, by: float) -> float:
    """Of CART of adapters in a space, which keeps ``rank`` directions of each."""
    matrices, basis, size = _in_coordinates(space, stack)
    deviations = matrices - np.mean(matrices, axis=0)
    return by * _together(
        [truncation(x, rank, basis=basis, size=size) for x in deviations]
    )


def tsv(space: jm.Space, stack: jm.AdapterStack, *, ranks: Sequence[int]) -> float:
    """Of TSV-M of adapters in a space."""
    matrices, basis, size = _in_coordinates(space, stack)
    return task_singular_vectors(matrices, ranks, basis=basis, size=size)


def _in_coordinates(space, stack):
    """What spectral rules see: matrices, their basis, and the size of an error.

    Core space has the singular values of full space.
    """
    updates = np.matmul(stack.b, stack.a)
    size = max(np.linalg.norm(update, 2) for update in updates)
    if space is not jm.knots_unscaled:
        return updates, None, size
    u, s, vt = np.linalg.svd(np.concatenate(updates, axis=1), full_matrices=False)
    exist = s > NULL * s[0]
    matrices = np.stack(np.split(vt[exist], len(updates), axis=1))
    return matrices, u[:, exist] * s[exist], size


def merged_entrywise(
    space: jm.Space, stack: jm.AdapterStack, update: np.ndarray
) -> float:
    """Of an update that a rule like TIES made in a space of these adapters."""
    if space is jm.full:
        return np.linalg.norm(update)
    if space is jm.core:
        sides = np.concatenate(stack.b, axis=1), np.concatenate(stack.a).T
        return float(
            np.hypot(
                *(
                    _in_directions_of(side, x)
                    for side, x in zip(sides, (update, update.T), strict=True)
                )
            )
        )
    return _in_directions_of(np.concatenate(np.matmul(stack.b, stack.a), 1), update)


def _turning(values):
    """``s_0 / |s_i - s_j|`` [k, k]: how far two directions turn into each other."""
    exist = values > NULL * values[0]
    turning = np.outer(exist, exist) & ~np.eye(len(values), dtype=bool)
    gaps = np.abs(values[:, None] - values)
    return np.where(turning, values[0] / np.where(turning, gaps, 1), 0)


def _in_directions_of(matrix, update):
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    return entrywise(s, u.T @ update)


def _polar_factor(vectors, noise, heard):
    """Of ``polar(vectors) @ diag(heard)``, vectors being columns with errors."""
    _, s, combinations = np.linalg.svd(vectors, full_matrices=False)
    moved, loud = (np.linalg.norm(combinations * x, axis=1) for x in (noise, heard))
    return np.linalg.norm(moved * loud / s)


def _in_basis(directions, basis):
    """How loud directions [p, k] are in an update, and how noisy their coordinates."""
    if basis is None:
        return np.ones((2, directions.shape[1]))
    lengths = np.linalg.norm(basis, axis=0)[:, None]
    return (
        np.linalg.norm(directions * lengths, axis=0),
        np.linalg.norm(directions / lengths, axis=0),
    )


def _together(moves) -> float:
    return float(np.linalg.norm(moves))
