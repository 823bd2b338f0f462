"""Calls of the linear layers of a Flax model, linen or nnx, while it runs."""

import difflib
import threading
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax

from jaxmerge.models.layout import KINDS, Layer, layer_of

Apply = Callable[[Any, Any], Any]  # (params, batch) -> outputs; runs a Flax model
Change = Callable[[jax.Array], jax.Array]


class Event(NamedTuple):
    """A module is called.

    Attributes:
      name: path of the module in the model, joined by dots.
      kind: name of its type.
      arguments: of the call.
      layer: describes the module and the call; None unless it is a linear layer.
      with_kernel: outputs of the same call with another kernel.
    """

    name: str
    kind: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    layer: Callable[[], Layer] | None
    with_kernel: Callable[[Change], Any]


Handler = Callable[[Event, Callable[[], Any]], Any]  # gives the outputs of the call


class _Watching(threading.local):
    handlers: tuple[Handler, ...] = ()


_watching = _Watching()


@contextmanager
def watched(handler: Handler) -> Generator[None, None, None]:
    """Has a function give the outputs of the modules of a model that runs inside.

    It is given the call and a function that makes it. Of several the one that was added
    last is the innermost.
    """
    before = _watching.handlers
    _watching.handlers = (*before, handler)
    try:
        with nn.intercept_methods(partial(_of_linen, handler)):
            yield
    finally:
        _watching.handlers = before


def handled(event: Event, call: Callable[[], Any]) -> Any:
    """What those that watch make of a call."""
    for handler in reversed(_watching.handlers):
        call = partial(handler, event, call)
    return call()


def is_watched() -> bool:
    """Whether anybody watches."""
    return bool(_watching.handlers)


def _of_linen(
    handler: Handler,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: Any,
) -> Any:
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    module, name = context.module, ".".join(context.module.path)

    def with_kernel(change: Change) -> Any:
        params = dict(module.variables["params"])
        params["kernel"] = change(params["kernel"])
        alone = module.clone(parent=None, name=None)
        return alone.apply({"params": params}, *args, **kwargs)

    linear = isinstance(module, KINDS)
    layer = partial(layer_of, name, module, *args, **kwargs) if linear else None
    event = Event(name, type(module).__name__, (args, kwargs), layer, with_kernel)
    return handler(event, partial(call, *args, **kwargs))


class Call(NamedTuple):
    """One call of a linear layer inside a model."""

    layer: Layer
    inputs: jax.Array
    outputs: jax.Array
    event: Event

    def with_kernel(self, change: Change) -> jax.Array:
        """Outputs of the same call with another kernel."""
        outputs = self.event.with_kernel(change)
        return cast(jax.Array, outputs)  # a pair only where something is mutable


@contextmanager
def intercepted(
    modules: Collection[str], change: Callable[[Call], jax.Array]
) -> Generator[None, None, None]:
    """Replaces the outputs of the named layers, while a model runs in its context.

    Raises:
      ValueError: a name of no linear layer that was run.
    """
    linear: set[str] = set()

    def handler(event: Event, call: Callable[[], Any]) -> Any:
        name, outputs = event.name, call()
        if event.layer is not None:
            linear.add(name)
        if name not in modules:
            return outputs
        if event.layer is None:
            kinds = ", ".join(kind.__name__ for kind in KINDS)
            raise ValueError(f"{name} is a {event.kind}, not one of {kinds}")
        args, kwargs = event.arguments
        inputs = args[0] if args else kwargs["inputs"]
        return change(Call(event.layer(), inputs, outputs, event))

    with watched(handler):
        yield
    for name in sorted(set(modules) - linear):
        near = difflib.get_close_matches(name, sorted(linear), n=3, cutoff=0.0)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"{name}: the model runs no linear layer of that name{hint}")
