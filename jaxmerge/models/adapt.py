"""Merged updates and input taps for any Flax model, by interception.

A module name is the path of a layer in the model, joined by dots: with the module
names of Hugging Face it is the PEFT name. Layers may be ``nn.Dense``,
``nn.DenseGeneral`` and ``nn.Einsum``, in the layouts of `jaxmerge.models.layout`.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxmerge.models.layout import KINDS, Layer, layer_of
from jaxmerge.types import Update

Apply = Callable[[Any, Any], Any]  # (params, batch) -> outputs; runs a Flax model


def with_updates(apply: Apply, updates: Mapping[str, Update]) -> Apply:
    """Adds merged updates to the outputs of the layers that they name.

    The output y of a layer becomes ``y + (x a^T) b^T`` for a `LowRank` update, whose
    product is never formed, and ``y + x D^T`` for a dense one, in the dtype of y.
    Updates may be traced: the result jits, differentiates and vmaps in them.

    Args:
      apply: pure function of parameters and batch that runs a Flax model.
      updates: update of each module, by name.

    Returns:
      A function like ``apply``. It raises ValueError for a module that the model does
      not run (with the nearest names), a layer of another kind, or an update of
      another shape.

    Raises:
      ValueError: ``apply`` is already jitted: its compiled code cannot be intercepted.

    >>> from jaxmerge.types import LowRank
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
    _refuse_jitted(apply)

    def add(layer: Layer, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
        return outputs + layer.delta(updates[layer.name], inputs, outputs.dtype)

    def adapted(params: Any, batch: Any) -> Any:
        with _intercepted(updates, add):
            return apply(params, batch)

    return adapted


def with_taps(apply: Apply, modules: Iterable[str]) -> Apply:
    """Returns, beside the outputs, the inputs of the named layers.

    Around `with_updates` it sees the inputs in the updated model. Layers inside
    ``nn.scan`` or ``nn.remat`` cannot be tapped.

    Args:
      apply: pure function of parameters and batch that runs a Flax model.
      modules: names of the layers.

    Returns:
      A function of parameters and batch that gives ``(outputs, taps)``; ``taps`` holds
      for each module its inputs [..., n]. It raises ValueError for a module that the
      model does not run (with the nearest names) or runs twice, or a layer of another
      kind.

    Raises:
      ValueError: ``apply`` is already jitted.
    """
    _refuse_jitted(apply)
    modules = frozenset(modules)

    def tapped(params: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        taps: dict[str, jax.Array] = {}

        def keep(layer: Layer, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
            if layer.name in taps:
                raise ValueError(f"{layer.name}: runs more than once in one call")
            taps[layer.name] = layer.rows(inputs)
            return outputs

        with _intercepted(modules, keep):
            outputs = apply(params, batch)
        return outputs, taps

    return tapped


def add_to_params(
    params: Any, updates: Mapping[str, Update], *, apply: Apply, batch: Any
) -> Any:
    """Writes updates into the weights: every named kernel becomes W0 + update.

    Args:
      params: nested dict, as ``apply`` takes it.
      updates: update of each module, by name.
      apply: pure function of parameters and batch that runs a Flax model; only traced,
        to learn the kind and layout of each layer.
      batch: a batch, or its shapes (``jax.ShapeDtypeStruct``).

    Returns:
      A new nested dict; each sum is rounded once, to the dtype of the kernel.

    Raises:
      ValueError: as for `with_updates`, or a kernel that is not in ``params``.
    """
    _refuse_jitted(apply)
    layers: dict[str, Layer] = {}

    def note(layer: Layer, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
        layers[layer.name] = layer
        return outputs

    with _intercepted(updates, note):
        # a new function each time: eval_shape does not trace one again that it knows
        jax.eval_shape(lambda *args: apply(*args), params, batch)
    flat = flatten_dict(params, sep=".")
    for name, layer in layers.items():
        paths = [p for p in (f"{name}.kernel", f"params.{name}.kernel") if p in flat]
        if not paths:
            raise ValueError(f"{name}: no kernel of that name in the parameters")
        kernel, delta = jnp.asarray(flat[paths[0]]), layer.to_kernel(updates[name])
        if kernel.shape != delta.shape:
            raise ValueError(f"{name}: kernel {kernel.shape}, update {delta.shape}")
        dtypes = (kernel.dtype, delta.dtype)
        wide = jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32
        flat[paths[0]] = (kernel.astype(wide) + delta.astype(wide)).astype(kernel.dtype)
    return unflatten_dict(flat, sep=".")


@contextmanager
def _intercepted(
    modules: Collection[str],
    change: Callable[[Layer, jax.Array, jax.Array], jax.Array],
) -> Iterator[None]:
    """Replaces outputs of the named layers by ``change(layer, inputs, outputs)``."""
    linear: set[str] = set()

    def interceptor(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module, name = context.module, ".".join(context.module.path)
        outputs = call(*args, **kwargs)
        if context.method_name != "__call__":
            return outputs
        if isinstance(module, KINDS):
            linear.add(name)
        elif name in modules:
            kinds = ", ".join(kind.__name__ for kind in KINDS)
            raise ValueError(f"{name} is a {type(module).__name__}, not one of {kinds}")
        if name not in modules:
            return outputs
        inputs = args[0] if args else kwargs["inputs"]
        return change(layer_of(name, module, *args, **kwargs), inputs, outputs)

    with nn.intercept_methods(interceptor):
        yield
    for name in sorted(set(modules) - linear):
        near = difflib.get_close_matches(name, sorted(linear), n=3, cutoff=0.0)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"{name}: the model runs no linear layer of that name{hint}")


def _refuse_jitted(apply: Apply) -> None:
    if isinstance(apply, jax.stages.Wrapped):
        raise ValueError("pass apply as it was before jax.jit, and jit the result")
