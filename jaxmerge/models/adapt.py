"""Merged updates and input taps for any Flax model, by interception.

A module name is the path of a layer in the model, joined by dots: with the module
names of Hugging Face it is the PEFT name. Layers may be ``nn.Dense``,
``nn.DenseGeneral`` and ``nn.Einsum``, in the layouts of `jaxmerge.models.layout`, and
those of nnx in a model that `jaxmerge.models.nnx_models` made a function of.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.models.calls import Apply, Call, intercepted
from jaxmerge.models.layout import Layer
from jaxmerge.models.routing import routed_product
from jaxmerge.types import LowRank, RoutedCores, Update


def with_updates(
    apply: Apply,
    updates: Mapping[str, Update | RoutedCores],
    *,
    merged: bool | None = False,
) -> Apply:
    """Adds merged updates to the outputs of the layers that they name.

    The output y of a layer becomes ``y + (x a^T) b^T`` for a `LowRank` update, whose
    product is never formed, and ``y + x D^T`` for a dense one, in the dtype of y; to
    that of `RoutedCores` `jaxmerge.models.routed_product` is added. Updates may be
    traced: the result jits, differentiates and vmaps in them.

    Args:
      apply: pure function of parameters and batch that runs a Flax model.
      updates: update of each module, by name.
      merged: write the updates into a copy of the weights first; None does so for the
        layers where that is faster. Values and gradients are the same up to rounding.
        Routed cores, which no weight can hold, are added to the output in any case.
        Only reverse-mode derivatives of first order reach merged updates (``jax.grad``,
        not ``jax.jvp``).

    Cost, forward and backward, for N tokens, rank k and a layer of m x n, in
    multiplications beside the layer's own: ``4 N k (m + n)``, and memory for [N, k];
    merged ``2 N k (m + n) + m n k``, and a copy of the weights, so it is faster from
    ``m n / (2 (m + n))`` tokens on. The gradients of the factors are thin products
    either way: no gradient of m x n is formed.

    Returns:
      A function like ``apply``. It raises ValueError for a module that the model does
      not run (with the nearest names), a layer of another kind, or an update of
      another shape.

    Raises:
      ValueError: ``apply`` is already jitted: its compiled code cannot be intercepted.

    >>> from jaxmerge.types import LowRank
    >>> import flax.linen as nn
    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(2, use_bias=False, name="head")(x)
    >>> x = jnp.ones((1, 3), jnp.float32)
    >>> variables = {"params": {"head": {"kernel": jnp.zeros((3, 2), jnp.float32)}}}
    >>> update = LowRank(b=jnp.ones((2, 1)), a=jnp.ones((1, 3)))
    >>> with_updates(Model().apply, {"head": update})(variables, x).tolist()
    [[3.0, 3.0]]
    """
    refuse_jitted(apply)

    def add(call: Call) -> jax.Array:
        layer, update = call.layer, updates[call.layer.name]
        layer.check(update)
        rows = layer.rows(call.inputs).astype(call.outputs.dtype)
        if isinstance(update, RoutedCores):
            added = routed_product(update, rows, precision=layer.precision)
            return call.outputs + layer.unrows(added)
        if merged or (merged is None and _merged_is_faster(layer)):
            outputs = call.with_kernel(
                partial(kernel_sum, layer, jax.lax.stop_gradient(update))
            )
            return outputs + layer.unrows(_only_gradient(update, rows))
        return call.outputs + layer.unrows(_product(update, rows, layer.precision))

    def adapted(params: Any, batch: Any) -> Any:
        with intercepted(updates, add):
            return apply(params, batch)

    return adapted


class Tap(NamedTuple):
    """What a layer is given and gives."""

    inputs: jax.Array  # [..., n]
    outputs: jax.Array  # [..., m]


def with_taps(apply: Apply, modules: Iterable[str], *, outputs: bool = False) -> Apply:
    """Returns, beside the outputs, the inputs of the named layers.

    Around `with_updates` they are those in the updated model; inside of it, outputs are
    those before the update is added. Layers inside ``nn.scan`` or ``nn.remat`` cannot
    be tapped.

    Args:
      apply: pure function of parameters and batch that runs a Flax model.
      modules: names of the layers.
      outputs: tap what the layers give too.

    Returns:
      A function of parameters and batch that gives ``(outputs, taps)``; ``taps`` holds
      for each module its inputs [..., n], or with ``outputs`` a `Tap`. It raises
      ValueError for a module that the model does not run (with the nearest names) or
      runs twice, or a layer of another kind.

    Raises:
      ValueError: ``apply`` is already jitted.
    """
    refuse_jitted(apply)
    modules = frozenset(modules)

    def tapped(params: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        taps: dict[str, Any] = {}

        def keep(call: Call) -> jax.Array:
            name = call.layer.name
            if name in taps:
                raise ValueError(f"{name}: runs more than once in one call")
            rows = call.layer.rows(call.inputs)
            given = call.layer.output_rows(call.outputs) if outputs else None
            taps[name] = rows if given is None else Tap(rows, given)
            return call.outputs

        with intercepted(modules, keep):
            found = apply(params, batch)
        return found, taps

    return tapped


def kernel_sum(layer: Layer, update: Update, kernel: jax.Array) -> jax.Array:
    """The kernel of a layer plus an update, in the kernel's dtype."""
    delta = layer.to_kernel(update)
    if kernel.shape != delta.shape:
        raise ValueError(f"{layer.name}: kernel {kernel.shape}, update {delta.shape}")
    wide = _at_least_float32(kernel.dtype, delta.dtype)
    return (kernel.astype(wide) + delta.astype(wide)).astype(kernel.dtype)


def _at_least_float32(*dtypes: Any) -> Any:
    return jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32


def _merged_is_faster(layer: Layer) -> bool:
    tokens = math.prod(layer.shape(layer.leading))
    m, n = (math.prod(layer.shape(a)) for a in (layer.features, layer.contracted))
    return 2 * tokens * (m + n) > m * n


def _product(update: Update, rows: jax.Array, precision: Any) -> jax.Array:
    """``x D^T`` [..., m] for rows x [..., n]; a low rank stays factored."""
    factors = (update.a, update.b) if isinstance(update, LowRank) else (update,)
    for factor in factors:
        rows = jnp.matmul(rows, factor.astype(rows.dtype).T, precision=precision)
    return rows


@jax.custom_vjp
def _only_gradient(update: Update, rows: jax.Array) -> jax.Array:
    """Zeros in the place of ``x D^T``, with its gradient in the update.

    The gradient in x is left out: it comes from the merged weights.
    """
    m = update.b.shape[0] if isinstance(update, LowRank) else update.shape[0]
    return jnp.zeros((*rows.shape[:-1], m), rows.dtype)


def _only_gradient_forward(
    update: Update, rows: jax.Array
) -> tuple[jax.Array, tuple[Update, jax.Array]]:
    return _only_gradient(update, rows), (update, rows)


def _only_gradient_backward(
    saved: tuple[Update, jax.Array], cotangent: jax.Array
) -> tuple[Update, jax.Array]:
    update, rows = saved
    x = rows.reshape(-1, rows.shape[-1])
    g = cotangent.reshape(-1, cotangent.shape[-1])

    def thin(left: jax.Array, right: jax.Array, dtype: Any) -> jax.Array:
        wide = _at_least_float32(left.dtype)
        return jnp.matmul(left.T, right, preferred_element_type=wide).astype(dtype)

    if isinstance(update, LowRank):
        onto_a = jnp.matmul(x, update.a.astype(x.dtype).T)
        onto_b = jnp.matmul(g, update.b.astype(g.dtype))
        gradient = LowRank(
            b=thin(g, onto_a, update.b.dtype), a=thin(onto_b, x, update.a.dtype)
        )
    else:
        gradient = thin(g, x, update.dtype)
    return gradient, jnp.zeros_like(rows)


_only_gradient.defvjp(_only_gradient_forward, _only_gradient_backward)


def refuse_jitted(apply: Apply) -> None:
    """ValueError for a function whose compiled code cannot be intercepted."""
    if isinstance(apply, jax.stages.Wrapped):
        raise ValueError("pass apply as it was before jax.jit, and jit the result")
