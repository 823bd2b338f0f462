"""The exact threshold of magnitudes, without a sort, for one count or for many."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxmerge.refusals import Refusal

Blocks = tuple[jax.Array, ...]

_DIGIT = 8  # bits; what a pass counts then stays in the nearest cache


def magnitude_threshold(blocks: Sequence[jax.Array], count: ArrayLike) -> jax.Array:
    """The ``count``-th largest magnitude over all blocks of each task, exactly.

    Non-negative floats are ordered as their bit patterns are, so the threshold is found
    digit by digit, without a sort, a reshape, or a gather where the blocks are spread
    over devices. On a CPU a digit has 8 bits and one pass counts how often each of its
    values occurs; elsewhere it has one bit, which needs no scatter. A `jax.vmap` over
    counts alone, such as a sweep over densities, goes through the entries on a CPU no
    more often than one count does.

    Args:
      blocks: arrays [T, ...] of one dtype.
      count: how many entries to keep, at least 0; may be traced.

    Returns:
      [T]; keeping ``abs(x) >= threshold`` keeps count entries, and all that tie with
      the last. Infinite where count is 0. NaN counts as infinite.

    >>> print(magnitude_threshold([jnp.array([[1.0, -4.0, 2.0]])], 2))
    [2.]
    """
    if hasattr(blocks, "shape") or not blocks:
        raise Refusal(
            "magnitude_threshold takes a list of arrays [T, ...], at least one; put "
            "one array into a list"
        )
    for block in blocks:
        if block.shape[:1] != blocks[0].shape[:1] or block.dtype != blocks[0].dtype:
            raise Refusal(
                "magnitude_threshold takes arrays [T, ...] of one T and dtype, got "
                f"{block.dtype} {block.shape} beside {blocks[0].dtype} "
                f"{blocks[0].shape}"
            )
    size = sum(block[0].size for block in blocks)
    if size > jnp.iinfo(counter()).max:
        raise ValueError(
            f"{size} entries cannot be counted in {counter()}; set jax_enable_x64"
        )
    still = tuple(lax.stop_gradient(block) for block in blocks)
    counts = jnp.asarray(count).astype(counter())
    return _thresholds(jnp.broadcast_to(counts, (1, len(blocks[0]))), still)[0]


def counter() -> np.dtype:
    """The dtype of the widest integer that JAX is set to use."""
    return jax.dtypes.canonicalize_dtype(jnp.int64)


@jax.custom_batching.custom_vmap
def _thresholds(counts: jax.Array, blocks: Blocks) -> jax.Array:
    """Thresholds [D, T] of the same entries, for D counts of each of T tasks."""
    return _found(counts, blocks)


@_thresholds.def_vmap
def _of_many_counts(
    size: int, moves: tuple[bool, tuple[bool, ...]], counts: jax.Array, blocks: Blocks
) -> tuple[jax.Array, bool]:
    if not any(moves[1]):  # a sweep: the same entries for all counts
        found = _thresholds(counts.reshape(-1, counts.shape[-1]), blocks)
        return found.reshape(counts.shape), True
    axes = jax.tree.map(lambda moving: 0 if moving else None, moves)
    return jax.vmap(_found, axes)(counts, blocks), True


@jax.jit
def _found(counts: jax.Array, blocks: Blocks) -> jax.Array:
    dtype = blocks[0].dtype
    pattern = jnp.int64 if jnp.finfo(dtype).bits == 64 else jnp.int32
    infinity = np.array(np.inf, dtype).view(pattern)

    def bits_of(block: jax.Array) -> jax.Array:
        bits = lax.bitcast_convert_type(jnp.abs(block), pattern)
        return jnp.minimum(bits, infinity)  # NaN counts as infinite

    def by_digits(counts: jax.Array, blocks: Blocks) -> jax.Array:
        # task by task, so that the entries of one stay in cache
        def of_task(task: tuple[jax.Array, Blocks]) -> jax.Array:
            counts, bits = task[0], [bits_of(block) for block in task[1]]
            if len(counts) == 1:
                return _by_digits(counts[0], bits)[None]
            return _by_digits_of_many(counts, bits)

        return lax.map(of_task, (counts.T, blocks)).T

    def by_halves(counts: jax.Array, blocks: Blocks) -> jax.Array:
        bits = [bits_of(block) for block in blocks]
        one = lambda count: _by_halves(count, bits, infinity)  # noqa: E731
        return jax.vmap(one)(counts)

    bits = lax.platform_dependent(counts, blocks, cpu=by_digits, default=by_halves)
    threshold = lax.bitcast_convert_type(bits, dtype)
    return jnp.where(counts > 0, threshold, jnp.array(jnp.inf, dtype))


def _by_digits(count: jax.Array, blocks: Sequence[jax.Array]) -> jax.Array:
    """The count-th largest of some non-negative integers.

    Each pass counts how often a digit has each of its values in the entries that begin
    as the threshold does. All others are counted in cells of their own: adding to one
    cell again and again would have to wait for it.
    """
    pattern, values = blocks[0].dtype, 2**_DIGIT
    passes = len(_places(pattern))

    def next_digit(
        done: jax.Array, known: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        found, left = known
        place = ((passes - 1 - done) * _DIGIT).astype(pattern)
        occurring = jnp.zeros(2 * values, count.dtype)
        for bits in blocks:
            above = bits >> place
            other = (above >> _DIGIT) != found
            cell = (above & (values - 1)).astype(jnp.int32)
            cell = jnp.where(other, cell + values, cell)
            occurring = occurring.at[cell].add(1, mode="promise_in_bounds")
        digit, beyond = _reached(occurring[None, :values], left[None])
        return (found << _DIGIT) | digit[0].astype(pattern), left - beyond[0]

    first = jnp.zeros((), pattern), count
    return lax.fori_loop(0, passes, next_digit, first)[0]


def _by_digits_of_many(counts: jax.Array, blocks: Sequence[jax.Array]) -> jax.Array:
    """`_by_digits` for D counts [D].

    The first pass counts how often each leading digit occurs, which tells that of every
    threshold; the next ones do so for the entries that begin like one of them.
    """
    pattern, many, values = blocks[0].dtype, len(counts), 2**_DIGIT
    places = _places(pattern)
    tables: list[jax.Array] = []  # of each digit: the row of what begins like that

    def cells(bits: jax.Array) -> jax.Array:
        """row * values + digit of entries; their row is D if no threshold's."""
        row = jnp.zeros((), jnp.int32)
        for table, place in zip(tables, places, strict=False):
            row = _taken(table, row * values + _digit(bits, place))
        return row * values + _digit(bits, places[len(tables)])

    rows, left = jnp.zeros(many, jnp.int32), counts
    found = jnp.zeros(many, pattern)
    for _ in places:
        height = many + 1 if tables else 1
        occurring = jnp.zeros(height * values, counts.dtype)
        for bits in blocks:
            occurring = occurring.at[cells(bits)].add(1, mode="promise_in_bounds")
        digit, beyond = _reached(occurring.reshape(height, values)[rows], left)
        left = left - beyond
        found = (found << _DIGIT) | digit.astype(pattern)
        cell = rows * values + digit
        table = jnp.full(height * values, many, jnp.int32)
        tables.append(table.at[cell].set(jnp.arange(many, dtype=jnp.int32)))
        rows = _taken(tables[-1], cell)  # one for all that begin alike
    return found


def _places(pattern: np.dtype) -> list[int]:
    """How many bits follow each digit of a non-negative integer, from the first on."""
    return [*reversed(range(0, 8 * pattern.itemsize - 1, _DIGIT))]


def _reached(occurring: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The digits of thresholds [D], and how many entries have larger ones [D].

    Args:
      occurring: how often each value of the digit occurs [D, values].
      left: how many entries reach each threshold [D].
    """
    reaching = jnp.cumsum(occurring[:, ::-1], axis=1)[:, ::-1]
    digit = jnp.sum(reaching >= left[:, None], axis=1, dtype=jnp.int32) - 1
    digit = jnp.maximum(digit, 0)
    beyond = reaching - occurring
    return digit, jnp.take_along_axis(beyond, digit[:, None], axis=1)[:, 0]


def _digit(bits: jax.Array, place: int) -> jax.Array:
    return ((bits >> place) & (2**_DIGIT - 1)).astype(jnp.int32)


def _taken(table: jax.Array, cell: jax.Array) -> jax.Array:
    return table.at[cell].get(mode="promise_in_bounds")


def _by_halves(
    count: jax.Array, blocks: Sequence[jax.Array], infinity: np.ndarray
) -> jax.Array:
    """The count-th largest [T] of some non-negative integers, bit by bit."""

    def halve(
        _: Any, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # at least count entries are >= low; fewer are >= high
        middle = low + (high - low) // 2
        enough = sum(_count_from(middle, x) for x in blocks) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    pattern = blocks[0].dtype
    low = jnp.zeros(len(count), pattern)
    high = jnp.full_like(low, infinity + 1)
    width = 8 * pattern.itemsize - 1
    return lax.fori_loop(0, width, halve, (low, high))[0]


def _count_from(bound: jax.Array, values: jax.Array) -> jax.Array:
    """How many values [T, ...] of each task reach its bound [T].

    Rows are counted in floats, which is faster than in integers on some devices.
    """
    reached = jax.vmap(jnp.greater_equal)(values, bound)
    if reached.shape[-1] > 2 ** jnp.finfo(jnp.float32).nmant:
        rows = jnp.sum(reached, axis=-1, dtype=counter())
    else:
        rows = jnp.sum(reached.astype(jnp.bfloat16), axis=-1, dtype=jnp.float32)
    return jnp.sum(rows.astype(counter()), axis=range(1, rows.ndim))
