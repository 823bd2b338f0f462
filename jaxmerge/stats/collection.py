"""Statistics of the inputs of a model's layers, streamed over batches."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.models.adapt import Apply, with_taps
from jaxmerge.stats.moments import (
    Mask,
    Moments,
    Statistics,
    check_mask,
    masks_by_module,
    merge_moments,
    moments_of,
    sketch_of,
)


def collect_inputs(
    apply: Apply,
    params: Any,
    batches: Iterable[Any],
    *,
    modules: Iterable[str],
    mask: Mask | None = None,
    sketch: int | None = None,
) -> dict[str, Statistics]:
    """Moments of the inputs of the named modules over all batches.

    One compiled step for all batches of one shape; nothing but the moments is kept.
    Sharded batches are reduced by the compiler. Around `with_updates` the inputs are
    those in an adapted model.

    Args:
      apply: pure function of parameters and batch that runs a Flax model, not jitted.
      params: its parameters.
      batches: its inputs.
      modules: names of linear layers.
      mask: gives for a batch which tokens count, bool of the leading shape of the
        inputs of every module; all unless given. Leave padding out. Where the shapes
        differ it gives a mapping from modules to masks; of a module that the mapping
        lacks everything counts.
      sketch: rows of a `Sketch` of each module, for an n x n that is too big.

    Returns:
      module -> `Moments`, or `Sketch`. They accumulate in float32 at least.

    Raises:
      ValueError: no batch, a mask of another shape, or as for `with_taps`.

    >>> import flax.linen as nn
    >>> model = nn.Sequential([nn.Dense(2), nn.tanh, nn.Dense(1)])
    >>> batches = [jnp.ones((4, 3)), 3 * jnp.ones((4, 3))]
    >>> params = model.init(jax.random.key(0), batches[0])
    >>> modules = ["layers_0", "layers_2"]
    >>> stats = collect_inputs(model.apply, params, batches, modules=modules)
    >>> print(stats["layers_0"].mean, stats["layers_2"].gram.shape)
    [2. 2. 2.] (2, 2)
    """
    return collector(apply, modules=modules, mask=mask, sketch=sketch)(params, batches)


def collector(
    apply: Apply,
    *,
    modules: Iterable[str],
    mask: Mask | None = None,
    sketch: int | None = None,
) -> Callable[[Any, Iterable[Any]], dict[str, Statistics]]:
    """`collect_inputs` as a function of parameters and batches, for many calls.

    All calls share their compiled steps, such as those for the tasks of a merge with
    the adapter among the parameters. Arguments as for `collect_inputs`.
    """
    tapped = with_taps(apply, modules)

    def measure(params: Any, batch: Any) -> dict[str, Statistics]:
        _, taps = tapped(params, batch)
        keep = masks_by_module(mask, batch, taps)
        return {
            name: _of_batch(name, x, keep[name], sketch) for name, x in taps.items()
        }

    @partial(jax.jit, donate_argnums=0)
    def step(before: Any, params: Any, batch: Any) -> dict[str, Statistics]:
        new = measure(params, batch)
        return {
            name: merge_moments(before[name], new[name], size=sketch) for name in new
        }

    def over(params: Any, batches: Iterable[Any]) -> dict[str, Statistics]:
        statistics = None
        for batch in batches:
            if statistics is None:
                shapes = jax.eval_shape(measure, params, batch)
                statistics = {name: _nothing(x, sketch) for name, x in shapes.items()}
            statistics = step(statistics, params, batch)
        if statistics is None:
            raise ValueError("collect_inputs: no batch was given")
        return statistics

    return over


def _of_batch(
    name: str, inputs: jax.Array, mask: jax.Array | None, sketch: int | None
) -> Statistics:
    check_mask(name, inputs, mask)
    if sketch is None:
        return moments_of(inputs, mask=mask)
    tokens = math.prod(inputs.shape[:-1])  # all rows: the merge shrinks them
    return sketch_of(inputs, size=tokens, mask=mask)


def _nothing(like: Statistics, sketch: int | None) -> Statistics:
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    if sketch is None or isinstance(like, Moments):
        return zeros
    n, dtype = like.rows.shape[-1], like.rows.dtype
    return zeros._replace(rows=jnp.zeros((sketch, n), dtype))
