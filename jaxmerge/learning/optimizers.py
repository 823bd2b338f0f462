"""Gradient transformations for coefficients, beside those of optax."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax


class DecayState(NamedTuple):
    """The parameters that `decay_to_start` draws back to."""

    start: Any


def decay_to_start(weight: float) -> optax.GradientTransformation:
    """Draws parameters back to where they began, as weight decay draws them to 0.

    Adds ``weight (p - p_0)`` to the updates, p_0 being the parameters at the start. A
    coefficient of 0 removes a direction from a merge, so that decay to 0 pulls the
    merge towards the base; the start is a merge that serves.

    To be chained where `optax.adamw` has its decay, between the moments and the rate:

    >>> rate = optax.scale_by_learning_rate(0.1)
    >>> optimizer = optax.chain(optax.scale_by_adam(), decay_to_start(0.01), rate)
    >>> p = jnp.array([2.0])
    >>> state = optimizer.init(p)
    >>> change, _ = optimizer.update(jnp.array([0.0]), state, p + 1)
    >>> print(change)
    [-0.001]
    """

    def init(params: Any) -> DecayState:
        return DecayState(jax.tree.map(jnp.array, params))

    def update(
        updates: Any, state: DecayState, params: Any = None
    ) -> tuple[Any, DecayState]:
        if params is None:
            raise ValueError("decay_to_start: update needs the parameters")
        drawn = jax.tree.map(
            lambda u, p, first: u + weight * (p - first), updates, params, state.start
        )
        return drawn, state

    return optax.GradientTransformation(init, cast(Any, update))


class AverageState(NamedTuple):
    """State of `tail_average`: the optimiser's, finished steps, and the mean so far."""

    inner: Any
    count: jax.Array  # []
    mean: Any


def tail_average(
    optimizer: optax.GradientTransformation, *, first: int, steps: int
) -> optax.GradientTransformation:
    """An optimiser that ends at the mean of the parameters of its last steps.

    The steps are those of ``optimizer``; the last one leads to the mean of the
    parameters after each step from number ``first`` on, itself among them.

    Args:
      optimizer: that is averaged.
      first: step, from 1 on, after which averaging begins.
      steps: number of the last step.

    Raises:
      ValueError: ``first`` is not one of the steps.

    >>> optimizer = tail_average(optax.sgd(1.0), first=2, steps=3)
    >>> p = jnp.array(0.0)
    >>> state = optimizer.init(p)
    >>> for _ in range(3):
    ...     change, state = optimizer.update(jnp.array(-1.0), state, p)
    ...     p = p + change
    ...     print(p)
    1.0
    2.0
    2.5
    """
    if not 1 <= first <= steps:
        raise ValueError(f"tail_average: first={first} is not from 1 to {steps}")

    def init(params: Any) -> AverageState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AverageState(optimizer.init(params), jnp.zeros((), jnp.int32), zeros)

    def update(
        updates: Any, state: AverageState, params: Any = None
    ) -> tuple[Any, AverageState]:
        change, inner = optimizer.update(updates, state.inner, params)
        count = state.count + 1
        seen = count - first + 1  # parameters in the mean

        def averaged(mean: jax.Array, p: jax.Array, c: jax.Array) -> jax.Array:
            number = jnp.maximum(seen, 1).astype(p.dtype)
            return jnp.where(seen > 0, mean + (p + c - mean) / number, mean)

        mean = jax.tree.map(averaged, state.mean, params, change)
        change = jax.tree.map(
            lambda c, p, m: jnp.where(count == steps, m - p, c), change, params, mean
        )
        return change, AverageState(inner, count, mean)

    return optax.GradientTransformation(init, cast(Any, update))
