"""The linear layers of any Flax model: their names, and their weights."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxmerge.models.adapt import Apply, kernel_sum, refuse_jitted
from jaxmerge.models.calls import Call, Event, intercepted, watched
from jaxmerge.models.layout import Layer
from jaxmerge.types import Update


def linear_layers(apply: Apply, params: Any, batch: Any) -> tuple[str, ...]:
    """Names of the linear layers that a model runs, in the order in which it does.

    Args:
      apply: pure function of parameters and batch that runs a Flax model; only traced.
      params: as ``apply`` takes them.
      batch: a batch, or its shapes (``jax.ShapeDtypeStruct``).

    Raises:
      ValueError: ``apply`` is already jitted.

    >>> import flax.linen as nn
    >>> model = nn.Sequential([nn.Dense(2), nn.tanh, nn.Dense(1)])
    >>> params = model.init(jax.random.key(0), jnp.ones((4, 3)))
    >>> linear_layers(model.apply, params, jnp.ones((4, 3)))
    ('layers_0', 'layers_2')
    """
    refuse_jitted(apply)
    names: dict[str, None] = {}

    def note(event: Event, call: Callable[[], Any]) -> Any:
        if event.layer is not None:
            names[event.name] = None
        return call()

    with watched(note):
        jax.eval_shape(lambda *args: apply(*args), params, batch)
    return tuple(names)


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
    flat: dict[str, Any] = flatten_dict(params, sep=".")
    for layer in _layers(apply, params, batch, updates):
        path = _kernel_path(layer.name, flat)
        flat[path] = kernel_sum(layer, updates[layer.name], jnp.asarray(flat[path]))
    return unflatten_dict(flat, sep=".")


def layer_weights(
    params: Any, modules: Collection[str], *, apply: Apply, batch: Any
) -> dict[str, jax.Array]:
    """The weights W0 [m, n] of linear layers, in the layout of their updates.

    Args:
      params: nested dict, as ``apply`` takes it.
      modules: names of the layers.
      apply: pure function of parameters and batch that runs a Flax model; only traced.
      batch: a batch, or its shapes (``jax.ShapeDtypeStruct``).

    Raises:
      ValueError: as for `add_to_params`.

    >>> import flax.linen as nn
    >>> x, model = jnp.ones((4, 3)), nn.Sequential([nn.Dense(2)])
    >>> params = model.init(jax.random.key(0), x)
    >>> weights = layer_weights(params, ["layers_0"], apply=model.apply, batch=x)
    >>> weights["layers_0"].shape
    (2, 3)
    """
    flat: dict[str, Any] = flatten_dict(params, sep=".")
    return {
        layer.name: layer.from_kernel(jnp.asarray(flat[_kernel_path(layer.name, flat)]))
        for layer in _layers(apply, params, batch, modules)
    }


def _layers(
    apply: Apply, params: Any, batch: Any, modules: Collection[str]
) -> list[Layer]:
    """How the named layers are laid out, from a trace of the model."""
    refuse_jitted(apply)
    layers: dict[str, Layer] = {}

    def note(call: Call) -> jax.Array:
        layers[call.layer.name] = call.layer
        return call.outputs

    with intercepted(modules, note):
        # a new function each time: eval_shape does not trace one again that it knows
        jax.eval_shape(lambda *args: apply(*args), params, batch)
    return list(layers.values())


def _kernel_path(name: str, flat: Mapping[str, Any]) -> str:
    for path in (f"{name}.kernel", f"params.{name}.kernel"):
        if path in flat:
            return path
    raise ValueError(f"{name}: no kernel of that name in the parameters")
