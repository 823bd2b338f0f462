"""Statistics of the inputs of linear layers: first and second moments, streaming.

`Moments` keep the Gram matrix of all inputs, n x n; a `Sketch` keeps a few rows that
stand for it. Whoever needs statistics works with either, through `times_gram` and
`spectrum`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_shapes
from jaxmerge.refusals import Refusal


class Moments(NamedTuple):
    """Exact moments of the inputs z of one module; a leading axis holds tasks."""

    count: jax.Array  # []: number of tokens
    mean: jax.Array  # [n]
    gram: jax.Array  # [n, n], sum of z z^T


class Sketch(NamedTuple):
    """Moments whose Gram matrix G is known by l rows S: ``G - S^T S`` is small.

    Frequent Directions (arXiv 1501.01711): ``0 <= G - S^T S <= lost * I`` as quadratic
    forms, and ``lost <= ||Z - Z_k||^2 / (l + 1 - k)`` for every k <= l, Z_k being the
    best approximation of rank k of all inputs Z. Inputs of rank l at most are exact.
    """

    count: jax.Array  # []
    mean: jax.Array  # [n]
    rows: jax.Array  # [l, n]
    lost: jax.Array  # []: bound of the error, in the units of G


Statistics = Moments | Sketch
Mask = Callable[
    [Any], jax.Array | Mapping[str, jax.Array]
]  # of a batch; see `collect_inputs`


def moments_of(inputs: jax.Array, *, mask: jax.Array | None = None) -> Moments:
    """Moments of given inputs.

    Args:
      inputs: [..., n]; bf16 and fp16 are computed in float32.
      mask: bool of the leading shape, True for tokens that count; all unless given.
        Values of the others do not matter, not even NaN.

    >>> moments = moments_of(jnp.array([[1.0, 0.0], [3.0, 0.0]]))
    >>> print(moments.count, moments.mean, moments.gram[0, 0])
    2.0 [2. 0.] 10.0
    """
    check_shapes(moments_of, inputs=(inputs, "[..., n]"), mask=(mask, "[...]"))
    rows, count = counted_rows(inputs, mask)
    mean = linalg.divide(jnp.sum(rows, axis=0), count)
    return Moments(count=count, mean=mean, gram=linalg.matmul(rows.T, rows))


def sketch_of(inputs: jax.Array, *, size: int, mask: jax.Array | None = None) -> Sketch:
    """Moments of given inputs as a `Sketch` of ``size`` rows.

    Cost: O(N n min(N, n)) for N tokens, O(N n) memory; no n x n array where N < n.
    """
    check_shapes(sketch_of, inputs=(inputs, "[..., n]"), mask=(mask, "[...]"))
    rows, count = counted_rows(inputs, mask)
    mean = linalg.divide(jnp.sum(rows, axis=0), count)
    return _shrink(Sketch(count, mean, rows, jnp.zeros((), rows.dtype)), size)


def merge_moments(
    first: Statistics, second: Statistics, *, size: int | None = None
) -> Statistics:
    """Moments of the inputs of both together.

    Args:
      first: moments or sketch.
      second: of the same kind.
      size: rows of the result for sketches; those of the smaller unless given.

    >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> both = merge_moments(moments_of(x[:1]), moments_of(x[1:]))
    >>> print(both.mean, bool(jnp.allclose(both.gram, x.T @ x)))
    [3. 4.] True
    """
    for part in (first, second):
        check_moments(merge_moments, part, "[..., ")
    means = {"first": (first.mean, "[..., n]"), "second": (second.mean, "[..., n]")}
    check_shapes(merge_moments, **means)
    if isinstance(first, Moments) and isinstance(second, Moments):
        return Moments(*_joined(first, second), gram=first.gram + second.gram)
    if isinstance(first, Sketch) and isinstance(second, Sketch):
        rows = jnp.concatenate([first.rows, second.rows], axis=-2)
        both = Sketch(*_joined(first, second), rows, first.lost + second.lost)
        smaller = min(first.rows.shape[-2], second.rows.shape[-2])
        return _shrink(both, smaller if size is None else size)
    raise ValueError("merge_moments: cannot merge a sketch with exact moments")


def masks_by_module(
    mask: Mask | None, batch: Any, modules: Iterable[str]
) -> dict[str, jax.Array | None]:
    """The mask of each module's inputs for a batch, None where everything counts."""
    found = None if mask is None else mask(batch)
    if isinstance(found, Mapping):
        return {name: found.get(name) for name in modules}
    return dict.fromkeys(modules, found)


def check_mask(name: str, inputs: jax.Array, mask: jax.Array | None) -> None:
    """Refuses a mask that is not of the leading shape of a module's inputs."""
    if mask is not None and mask.shape != inputs.shape[:-1]:
        raise ValueError(
            f"{name} has inputs of the leading shape {inputs.shape[:-1]}, the mask "
            f"that says which tokens count has {mask.shape}"
        )


def counted_rows(
    inputs: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Inputs as rows [N, n], zeros where a token does not count, and their number."""
    wide = jnp.float32 if jnp.finfo(inputs.dtype).bits < 32 else inputs.dtype
    rows = inputs.reshape(-1, inputs.shape[-1]).astype(wide)
    if mask is None:
        return rows, jnp.asarray(rows.shape[0], wide)
    keep = jnp.asarray(mask, bool).reshape(-1)
    return jnp.where(keep[:, None], rows, 0), jnp.sum(keep, dtype=wide)


def stack_moments(
    tasks: Sequence[Mapping[str, Statistics]],
) -> dict[str, Statistics]:
    """Statistics of T tasks as mergers take them: a leading task axis, by module.

    >>> one = {"q": moments_of(jnp.ones((2, 3)))}
    >>> print(stack_moments([one, one])["q"].gram.shape)
    (2, 3, 3)
    """
    if not tasks:
        raise ValueError("stack_moments: no task was given")
    for number, task in enumerate(tasks):
        different = sorted(set(task) ^ set(tasks[0]))
        if different:
            raise ValueError(
                f"stack_moments: module {different[0]!r} has statistics in one of the "
                f"tasks 0 and {number} only; collect the same modules for all tasks"
            )
    for name, first in tasks[0].items():
        for task in tasks:
            check_moments(stack_moments, task[name], "[..., ")
            if not isinstance(task[name], type(first)):
                raise Refusal(
                    f"stack_moments: module {name!r} has exact moments in some tasks "
                    "and sketches in others; collect all of them alike"
                )
            one, other = (first.mean, "[..., n]"), (task[name].mean, "[..., n]")
            check_shapes(stack_moments, one=one, other=other)
    return {
        name: jax.tree.map(lambda *x: jnp.stack(x), *(task[name] for task in tasks))
        for name in tasks[0]
    }


def check_moments(function: Callable[..., Any], statistics: Any, leading: str) -> None:
    """Refuses what are no statistics of inputs, with these axes before the others."""
    if not isinstance(statistics, Moments | Sketch):
        raise Refusal(
            f"{function.__name__} takes jaxmerge.Moments or a jaxmerge.Sketch, got a "
            f"{type(statistics).__name__}"
        )
    square = isinstance(statistics, Moments)
    check_shapes(
        function,
        mean=(statistics.mean, f"{leading}n]"),
        gram=(statistics.gram if square else None, f"{leading}n, n]"),
        rows=(None if square else statistics.rows, f"{leading}l, n]"),
    )


def times_gram(x: jax.Array, statistics: Statistics) -> jax.Array:
    """``x G / count``, [..., k, n] times the mean of z z^T; zeros without tokens.

    >>> print(times_gram(jnp.ones((1, 2)), moments_of(jnp.array([[1.0, 2.0]] * 3))))
    [[3. 6.]]
    """
    check_moments(times_gram, statistics, "[..., ")
    if jnp.shape(x)[-1:] != statistics.mean.shape[-1:] or jnp.ndim(x) < 2:
        raise Refusal(
            f"times_gram takes x [..., k, n] and statistics of n features, got "
            f"{jnp.shape(x)} and {statistics.mean.shape[-1]} features"
        )
    share = linalg.divide(1, statistics.count)[..., None, None]
    if isinstance(statistics, Sketch):
        rows = statistics.rows
        return linalg.matmul(linalg.matmul(x, linalg.transpose(rows)), rows) * share
    return linalg.matmul(x, statistics.gram) * share


def mean_square(statistics: Statistics) -> jax.Array:
    """Mean square of each input feature, [..., n]: the diagonal of G / count."""
    check_moments(mean_square, statistics, "[..., ")
    if isinstance(statistics, Sketch):
        diagonal = jnp.sum(statistics.rows**2, axis=-2)
    else:
        diagonal = jnp.diagonal(statistics.gram, axis1=-2, axis2=-1)
    return diagonal * linalg.divide(1, statistics.count)[..., None]


def scale_features(statistics: Statistics, *, by: jax.Array) -> Statistics:
    """Moments of the inputs ``z * by``: every feature in another unit, by is [n].

    What a `Sketch` has lost is bounded in old units and stays as it is.
    """
    if isinstance(statistics, Sketch):
        scaled = {"rows": statistics.rows * by[None, :]}
    else:
        scaled = {"gram": by[:, None] * statistics.gram * by[None, :]}
    return statistics._replace(mean=statistics.mean * by, **scaled)


def equal_parts(statistics: Statistics) -> Statistics:
    """Sum of stacked statistics [T, ..] in which each task counts as one token.

    ``sum_t G_t / count_t``: whoever has more tokens does not count more.
    """
    check_moments(equal_parts, statistics, "[T, ")
    share = linalg.divide(1, statistics.count)
    one = jnp.ones((), share.dtype)
    mean = jnp.sum(statistics.mean, axis=0)
    if isinstance(statistics, Sketch):
        rows = statistics.rows * linalg.root(share)[:, None, None]
        lost = jnp.sum(statistics.lost * share)
        return Sketch(one, mean, rows.reshape(-1, rows.shape[-1]), lost)
    return Moments(one, mean, linalg.einsum("t,tnp->np", share, statistics.gram))


def shrink_off_diagonal(statistics: Statistics, *, keep: ArrayLike) -> Statistics:
    """Multiplies what is beside the diagonal of the Gram matrix; ``keep`` may trace.

    Raises:
      ValueError: a sketch, whose rows do not allow it, unless ``keep`` is the number 1.

    >>> moments = moments_of(jnp.array([[1.0, 2.0]]))
    >>> print(shrink_off_diagonal(moments, keep=0.5).gram)
    [[1. 1.]
     [1. 4.]]
    """
    check_moments(shrink_off_diagonal, statistics, "[..., ")
    if isinstance(keep, int | float) and keep == 1:
        return statistics
    if isinstance(statistics, Sketch):
        raise ValueError("off-diagonals shrink for exact moments only, not a sketch")
    gram = statistics.gram
    diagonal = jnp.eye(gram.shape[-1], dtype=bool)
    shrunk = jnp.where(diagonal, gram, jnp.asarray(keep, gram.dtype) * gram)
    return statistics._replace(gram=shrunk)


def spectrum(statistics: Statistics) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [d], ascending, and vectors [n, d] of G / count of one module.

    d = n for `Moments`, the number of rows for a `Sketch`: the rest of its eigenvalues
    is 0. Those at the level of rounding noise are set to 0. They are data, so no
    derivative passes through them.
    """
    check_moments(spectrum, statistics, "[")
    share = linalg.divide(1, statistics.count)
    if isinstance(statistics, Sketch):
        _, s, vt = linalg.svd(jax.lax.stop_gradient(statistics.rows))
        return (s * s * share)[::-1], vt[::-1].T
    values, vectors = linalg.eigh(statistics.gram * share)
    noise = linalg.rank_tolerance(values.dtype) * values[-1]
    return jnp.where(values > noise, values, 0), vectors


def _joined(first: Statistics, second: Statistics) -> tuple[jax.Array, jax.Array]:
    """Count and mean of both together."""
    count = first.count + second.count
    step = linalg.divide(second.count, count)[..., None]
    return count, first.mean + (second.mean - first.mean) * step


def _shrink(sketch: Sketch, size: int) -> Sketch:
    """A step of Frequent Directions: lowers all squares by the first that must be 0."""
    if size < 1:
        raise ValueError(f"a sketch needs at least one row, got {size}")
    if sketch.rows.shape[-2] > size:
        _, s, vt = linalg.svd(sketch.rows)
        squares = s * s
        cut = squares[..., size] if s.shape[-1] > size else jnp.zeros_like(sketch.lost)
        kept = linalg.root(squares[..., :size] - cut[..., None])
        rows = kept[..., None] * vt[..., :size, :]
        sketch = sketch._replace(rows=rows, lost=sketch.lost + cut)
    missing = size - sketch.rows.shape[-2]
    padding = [(0, 0)] * (sketch.rows.ndim - 2) + [(0, missing), (0, 0)]
    return sketch._replace(rows=jnp.pad(sketch.rows, padding))
