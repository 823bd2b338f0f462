"""Objectives without labels: entropy of predictions, inputs outside of an adapter's
reach, and how to weigh the tasks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmerge import linalg
from jaxmerge.doors import check_shapes


def entropy(
    logits: jax.Array, *, logit_scale: ArrayLike = 1.0, epsilon: float = 1e-10
) -> jax.Array:
    """Mean entropy of the predictions of a batch, in nats.

    ``mean(-sum_c p_c log(p_c + epsilon))`` with ``p = softmax(logit_scale * logits)``.

    Args:
      logits: [..., classes]; bf16 and fp16 are computed in float32.
      logit_scale: inverse temperature. Cosine similarities of CLIP need the model's
        own; without it every entropy is near ``log(classes)``.
      epsilon: inside the logarithm: 1e-10 in TARA's code, 1e-8 in AdaMerging's.

    >>> print(entropy(jnp.zeros((3, 2))).round(4))
    0.6931
    """
    check_shapes(entropy, logits=(logits, "[..., classes]"))
    if jnp.finfo(logits.dtype).bits < 32:
        logits = logits.astype(jnp.float32)
    p = jax.nn.softmax(logits * jnp.asarray(logit_scale, logits.dtype), axis=-1)
    return jnp.mean(-jnp.sum(p * jnp.log(p + epsilon), axis=-1))


def mean_prediction_entropy(
    logits: jax.Array, *, logit_scale: ArrayLike = 1.0
) -> jax.Array:
    """Entropy of the mean of the predictions of a batch, in nats.

    Near ``log(classes)`` where all classes are named, 0 where one class is named for
    every input: its fall tells of a collapse, without labels.

    Args:
      logits: [..., classes].
      logit_scale: see `entropy`.

    >>> print(mean_prediction_entropy(jnp.array([[99.0, 0.0], [0.0, 99.0]])).round(4))
    0.6931
    """
    check_shapes(mean_prediction_entropy, logits=(logits, "[..., classes]"))
    p = jax.nn.softmax(wide(logits) * jnp.asarray(logit_scale, wide(logits).dtype))
    mean = jnp.mean(p.reshape(-1, p.shape[-1]), axis=0)
    positive = mean > 0
    return -jnp.sum(
        jnp.where(positive, mean * jnp.log(jnp.where(positive, mean, 1)), 0)
    )


def divergence(
    teacher: jax.Array,
    student: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean Kullback-Leibler divergence from the predictions of a teacher, in nats.

    ``tau^2 mean(sum_c p_c (log p_c - log q_c))``, ``p = softmax(teacher / tau)`` and
    ``q = softmax(student / tau)``. The factor keeps gradients of one size for all
    temperatures. 0 where both predict the same, and so is its gradient.

    Args:
      teacher: logits [..., classes]; bf16 and fp16 are computed in float32.
      student: logits of the same shape.
      temperature: tau.
      mask: bool of the leading shape, True for predictions that count; all unless
        given.

    >>> same, other = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(divergence(same, same), divergence(same, other).round(4))
    0.0 0.3278
    """
    _check_pair(divergence, teacher, student, mask, "[..., classes]")
    tau = jnp.asarray(temperature, wide(student).dtype)
    log_p = jax.nn.log_softmax(wide(teacher) / tau)
    log_q = jax.nn.log_softmax(wide(student) / tau)
    each = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return tau * tau * masked_mean(each, mask)


def cosine_distance(
    teacher: jax.Array, student: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Mean of ``1 - cos(teacher, student)`` over features [..., d], in [0, 2].

    >>> print(cosine_distance(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])))
    1.0
    """
    _check_pair(cosine_distance, teacher, student, mask, "[..., d]")
    x, y = wide(teacher), wide(student)
    sizes = linalg.root(jnp.sum(x * x, -1)) * linalg.root(jnp.sum(y * y, -1))
    return masked_mean(1 - linalg.divide(jnp.sum(x * y, axis=-1), sizes), mask)


def squared_distance(
    teacher: jax.Array, student: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Mean of ``||teacher - student||^2 / d`` over features [..., d].

    >>> print(squared_distance(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])))
    5.0
    """
    _check_pair(squared_distance, teacher, student, mask, "[..., d]")
    apart = wide(teacher) - wide(student)
    return masked_mean(jnp.mean(apart * apart, axis=-1), mask)


def relative_distance(
    teacher: jax.Array, student: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Mean of ``||teacher - student||^2 / ||teacher||^2`` over features [..., d].

    Language models have tokens whose hidden states are a thousand times as large as
    those of others; in their norms all tokens are of one size, and so they are here.

    >>> print(relative_distance(jnp.array([[2.0, 0.0]]), jnp.array([[2.0, 1.0]])))
    0.25
    """
    _check_pair(relative_distance, teacher, student, mask, "[..., d]")
    apart, size = wide(teacher) - wide(student), wide(teacher)
    squares = (jnp.sum(x * x, axis=-1) for x in (apart, size))
    return masked_mean(linalg.divide(*squares), mask)


def _check_pair(
    function: Callable[..., Any],
    teacher: jax.Array,
    student: jax.Array,
    mask: jax.Array | None,
    axes: str,
) -> None:
    check_shapes(
        function, teacher=(teacher, axes), student=(student, axes), mask=(mask, "[...]")
    )


def wide(x: jax.Array) -> jax.Array:
    """An array in float32 at least."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def masked_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean over what counts; 0 where nothing does."""
    if mask is None:
        return jnp.mean(values)
    count = jnp.maximum(jnp.sum(mask, dtype=values.dtype), 1)
    return jnp.sum(jnp.where(mask, values, 0)) / count


def row_basis(a: jax.Array) -> jax.Array:
    """Orthonormal basis of the row space of A: [..., r, n] -> [..., n, min(r, n)].

    Columns beyond the rank of A are zero, so padded rows change nothing.
    """
    check_shapes(row_basis, a=(a, "[..., r, n]"))
    return linalg.transpose(linalg.svd(a)[2])


def null_space_ratio(
    inputs: jax.Array, basis: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Mean share of inputs outside of an adapter's row space (NSC, arXiv 2603.26317).

    ``mean(||z - Q Q^T z|| / ||z||)`` over the inputs z of a module, Q being a basis of
    the row space of A_t: 0 if z lies in that row space, 1 if ``A_t z = 0``. Training
    lowers it for the task of the adapter, so NSC fits coefficients that lower it for
    every task in the merged model, without labels or outputs.

    Args:
      inputs: [..., n], of the merged model on data of task t (`jaxmerge.models
        .with_taps`); bf16 and fp16 are computed in float32.
      basis: Q [n, r], from `row_basis`.
      mask: bool of the leading shape, True for tokens that count; all unless given.

    Returns:
      A number in [0, 1]; inputs that are zero count as 0. Finite gradients everywhere.

    Deviations: the official code takes ``sqrt(1 - z^T A^T (A A^T)^-1 A z / ||z||^2)``
    with alpha/r in one of the two A, so that the root can be of a negative number.

    >>> inputs = jnp.array([[3.0, 4.0], [0.0, 2.0]])
    >>> basis = row_basis(jnp.array([[5.0, 0.0]]))
    >>> print(null_space_ratio(inputs, basis).round(4))
    0.9
    """
    rows = {"inputs": (inputs, "[..., n]"), "basis": (basis, "[n, r]")}
    check_shapes(null_space_ratio, **rows, mask=(mask, "[...]"))
    if jnp.finfo(inputs.dtype).bits < 32:
        inputs = inputs.astype(jnp.float32)
    z = inputs.reshape(-1, inputs.shape[-1])
    keep = jnp.ones(z.shape[0], bool) if mask is None else mask.reshape(-1)
    z = jnp.where(keep[:, None], z, 0)
    basis = basis.astype(z.dtype)
    outside = z - linalg.matmul(linalg.matmul(z, basis), basis.T)
    size = linalg.root(jnp.sum(z * z, axis=1))
    unseen = linalg.root(jnp.sum(outside * outside, axis=1))
    ratios = linalg.divide(unseen, size)
    count = jnp.sum(keep, dtype=z.dtype)
    return jnp.sum(ratios) / jnp.maximum(count, 1)


def smooth_tchebycheff(
    values: jax.Array,
    *,
    preference: ArrayLike | None = None,
    anchors: ArrayLike | None = None,
    alpha: ArrayLike = 1.0,
    absolute: bool = False,
) -> jax.Array:
    """Smooth Tchebycheff scalarisation of several losses (TARA, arXiv 2603.26299).

    ``alpha * log sum_t exp(rho_t (f_t - z_t) / alpha)``: nearly a weighted sum for a
    large alpha, the worst task for a small one. The gradient weighs task t with
    ``rho_t * softmax_t(rho (f - z) / alpha)``.

    Args:
      values: losses f, [T].
      preference: rho, [T]; 1/T for each task unless given.
      anchors: z, [T], the loss that is ideal for each task; 0 unless given.
      alpha: smoothing, above 0.
      absolute: take ``|f_t - z_t|`` as the paper writes. The official code does not,
        so that it goes on to lower a loss that is below its anchor; it is the default.

    Deviation: computed with the maximum subtracted, so a small alpha does not overflow.

    >>> losses = jnp.array([1.0, 3.0])
    >>> print(smooth_tchebycheff(losses, alpha=0.01).round(4))
    1.5
    """
    _check_of_tasks(smooth_tchebycheff, values, preference, anchors)
    gaps = _gaps(values, anchors)
    weighted = _preference(preference, values) * (jnp.abs(gaps) if absolute else gaps)
    alpha = jnp.asarray(alpha, values.dtype)
    return alpha * jax.nn.logsumexp(weighted / alpha)


def linear_scalarisation(
    values: jax.Array,
    *,
    preference: ArrayLike | None = None,
    anchors: ArrayLike | None = None,
) -> jax.Array:
    """Weighted sum of losses, ``sum_t rho_t (f_t - z_t)``; the arguments as above.

    >>> print(linear_scalarisation(jnp.array([1.0, 3.0])))
    2.0
    """
    _check_of_tasks(linear_scalarisation, values, preference, anchors)
    return jnp.sum(_preference(preference, values) * _gaps(values, anchors))


def _check_of_tasks(
    scalarise: Callable[..., jax.Array],
    values: jax.Array,
    preference: ArrayLike | None,
    anchors: ArrayLike | None,
) -> None:
    check_shapes(
        scalarise,
        values=(values, "[T]"),
        preference=(preference, "[T]"),
        anchors=(anchors, "[T]"),
    )


def _gaps(values: jax.Array, anchors: ArrayLike | None) -> jax.Array:
    return values if anchors is None else values - jnp.asarray(anchors, values.dtype)


def _preference(preference: ArrayLike | None, values: jax.Array) -> jax.Array:
    if preference is None:
        return jnp.full_like(values, 1 / values.shape[0])
    return jnp.asarray(preference, values.dtype)


def effective_rank(singular_values: jax.Array) -> jax.Array:
    """Exponential of the entropy of the normalised singular values.

    ``exp(-sum_k p_k log p_k)`` with ``p = s / sum(s)`` and ``0 log 0 = 0``: k for k
    equal values, 1 for one, 0 where all are zero.

    >>> print(effective_rank(jnp.array([2.0, 2.0, 0.0])).round(4))
    2.0
    """
    check_shapes(effective_rank, singular_values=(singular_values, "[k]"))
    total = jnp.sum(singular_values)
    p = linalg.divide(singular_values, total)
    positive = p > 0
    spread = -jnp.sum(jnp.where(positive, p * jnp.log(jnp.where(positive, p, 1)), 0))
    return jnp.where(total > 0, jnp.exp(spread), 0)
