"""The exact threshold of magnitudes over entries that are made block by block.

Nothing is kept between blocks but counts, so that a whole model can be trimmed that
does not fit into memory.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_BITS = 16  # of a pattern that one pass tells apart


def threshold_in_passes(
    blocks: Callable[[], Iterable[jax.Array]], count: Callable[[], ArrayLike]
) -> jax.Array:
    """The ``count``-th largest magnitude over all blocks of each task, exactly.

    Non-negative floats are ordered as their bit patterns are. The first pass counts how
    often each value of the leading 16 bits occurs, which tells those of the threshold;
    the next one counts the following 16 bits of the entries that begin like it, until
    all are known: two passes for float32, four for float64.

    Args:
      blocks: gives the arrays [T, ...], of one dtype, anew for each pass.
      count: gives how many entries to keep, of all tasks or [T]; asked after the first
        pass, for which it may not be known.

    Returns:
      [T], as `jaxmerge.magnitude_threshold`. Memory: a block and 2^16 counts for each
      task.

    >>> one, other = jnp.array([[1.0, -4.0]]), jnp.array([[2.0, 0.5]])
    >>> print(threshold_in_passes(lambda: [one, other], lambda: 2))
    [2.]
    """
    counts, dtype = _count(blocks(), None, 0)
    width = 8 * dtype.itemsize
    tasks = len(counts)
    wanted = np.broadcast_to(np.asarray(count(), np.int64), (tasks,))
    left, found = wanted.copy(), np.zeros(tasks, np.int64)
    for place in range(width - _BITS, -1, -_BITS):
        if place < width - _BITS:
            counts, _ = _count(blocks(), found, place)
        for task, of_task in enumerate(counts):
            reaching = np.cumsum(of_task[::-1])[::-1]  # entries from this value on
            last = max(int(np.count_nonzero(reaching >= left[task])) - 1, 0)
            left[task] -= reaching[last + 1] if last + 1 < len(reaching) else 0
            found[task] = (found[task] << _BITS) | last
    pattern = np.uint64 if width == 64 else np.uint32
    threshold = found.astype(pattern).view(dtype)
    return jnp.asarray(np.where(wanted > 0, threshold, np.array(np.inf, dtype)))


def _count(
    blocks: Iterable[jax.Array], found: np.ndarray | None, place: int
) -> tuple[np.ndarray, np.dtype]:
    """How often each value of 16 bits of the patterns occurs [T, 2^16], and the dtype.

    Args:
      blocks: arrays [T, ...].
      found: [T], the bits before those, which an entry has to have to count; None for
        the first 16 bits.
      place: how many bits follow them.
    """
    counts, dtype = np.zeros((0, 2**_BITS), np.int64), np.dtype(np.float32)
    for block in blocks:
        values = np.abs(np.asarray(block)).reshape(len(block), -1)
        dtype = values.dtype
        pattern = np.int64 if dtype.itemsize == 8 else np.int32
        infinity = np.array(np.inf, dtype).view(pattern)
        if not len(counts):
            counts = np.zeros((len(values), 2**_BITS), np.int64)
        for task, row in enumerate(values):
            bits = np.minimum(row.view(pattern), infinity)  # NaN counts as infinite
            if found is None:
                place = 8 * dtype.itemsize - _BITS
            else:
                bits = bits[bits >> (place + _BITS) == found[task]]
            digits = (bits >> place) & (2**_BITS - 1)
            counts[task] += np.bincount(digits, minlength=2**_BITS)
    return counts, dtype
