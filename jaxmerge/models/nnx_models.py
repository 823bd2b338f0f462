"""Flax nnx models as pure functions whose layers updates and taps reach.

A layer has the name of its path in the model, joined by dots, as the adapters that
`jaxmerge.io.from_nnx` reads: ``layers.0.q_proj``. Layers are ``nnx.Linear``,
``nnx.LinearGeneral`` and ``nnx.Einsum``, in the layouts of `jaxmerge.models.layout`.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxmerge.models.calls import Apply, Change, Event, handled, is_watched
from jaxmerge.models.layout import Layer, dense_layer, einsum_layer

_KINDS = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum)
_NAME = "jaxmerge_name"


class Functional(NamedTuple):
    """A model as a pure function of its parameters and a batch.

    Attributes:
      apply: ``(params, batch) -> outputs``.
      params: nested dict of all arrays of the model, by the names of its attributes.
    """

    apply: Apply
    params: dict[str, Any]


def nnx_apply(
    model: nnx.Module, call: Callable[[Any, Any], Any] | None = None
) -> Functional:
    """An nnx model as every function here takes models that run by a pure function.

    So `with_updates`, `with_taps`, `jaxmerge.fit` and all losses work on it as on
    models of linen. The model itself is not changed, and what a call changes in it,
    such as counts of random numbers, is not kept.

    Args:
      model: in the mode in which it is to run, ``model.eval()`` for one with dropout.
      call: ``(model, batch) -> outputs``; ``model(batch)`` unless given. Without
        ``nnx.jit`` inside, which would keep the updates of the first call.

    Returns:
      `Functional`, a function and the parameters for it.

    >>> import jax.numpy as jnp
    >>> from jaxmerge.models.adapt import with_updates
    >>> from jaxmerge.types import LowRank
    >>> model = nnx.Sequential(nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0)))
    >>> apply, params = nnx_apply(model)
    >>> params = jax.tree.map(jnp.zeros_like, params)
    >>> update = LowRank(b=jnp.ones((2, 1)), a=jnp.ones((1, 3)))
    >>> with_updates(apply, {"layers.0": update})(params, jnp.ones((1, 3))).tolist()
    [[3.0, 3.0]]
    """
    graph, state = nnx.split(model)
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [tuple(str(k.key) for k in path if hasattr(k, "key")) for path, _ in leaves]
    arrays = (leaf for _, leaf in leaves)
    params = unflatten_dict(dict(zip(names, arrays, strict=True)))

    def apply(params: Any, batch: Any) -> Any:
        flat = flatten_dict(params)
        values = [flat[name] for name in names]
        own = nnx.merge(graph, jax.tree.unflatten(structure, values))
        if is_watched():
            _name_layers(own)
        return own(batch) if call is None else call(own, batch)

    return Functional(apply, params)


def _name_layers(model: nnx.Module) -> None:
    """Has the linear layers of a model, which is ours alone, tell of their calls."""
    found = [(p, x) for p, x in nnx.iter_graph(model) if isinstance(x, _KINDS)]
    for path, layer in found:
        setattr(layer, _NAME, ".".join(map(str, path)))
        object.__setattr__(layer, "__class__", _telling(type(layer)))


@cache
def _telling(kind: type[Any]) -> type[Any]:
    """A kind of layers of which every call is told."""

    class Telling(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            def with_kernel(change: Change) -> Any:
                copy = nnx.clone(self)
                copy.kernel = nnx.Param(change(self.kernel[...]))
                return kind.__call__(copy, *args, **kwargs)

            name = getattr(self, _NAME)
            layer = partial(_layer_of, name, self, *args, **kwargs)
            event = Event(name, kind.__name__, (args, kwargs), layer, with_kernel)
            return handled(event, partial(kind.__call__, self, *args, **kwargs))

    return Telling


def _layer_of(
    name: str,
    module: Any,
    inputs: jax.Array,
    einsum_str: str | None = None,
    out_sharding: Any = None,
) -> Layer:
    """Describes a layer and the call that it was given, see `layout.layer_of`."""
    del out_sharding
    if isinstance(module, nnx.Einsum):
        equation = einsum_str or module.einsum_str or ""
        shape = tuple(module.kernel_shape)
        return einsum_layer(name, inputs, equation, shape, module.precision)
    axis, batch = (-1,), ()
    if isinstance(module, nnx.LinearGeneral):
        axis, batch = module.axis, tuple(module.batch_axis)
    features = module.out_features
    return dense_layer(name, inputs, features, axis, batch, module.precision)
