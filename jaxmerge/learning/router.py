"""A learned router: which adapters each token gets, as the adapters teach it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge import linalg
from jaxmerge.mergers.routed import route_cores
from jaxmerge.refusals import Refusal
from jaxmerge.types import Learned, RoutedCores, Router


def core_router(*, rank: int | None = None, frozen: bool = True) -> Learned:
    """A router in front of the cores of T adapters, and the cores too if they may move.

    The fit of it by `jaxmerge.distillation` needs inputs without labels: each adapter
    says of the inputs of its task what the model with routed cores should say, which
    afterwards needs not be told the task. phi is [T, q + 1], the weights and the bias
    of each task; it begins at 0, where every token gets the average of the updates.

    Args:
      rank: width of U and V, see `jaxmerge.route_cores`.
      frozen: leave the cores as they are. Otherwise phi is [T, q + 1 + p q], the rest
        being what is added to the cores, in units of the root mean square of each, so
        that one rate serves all; this can mend what a small ``rank`` cut off.

    Returns:
      Learned, whose ``apply`` gives `RoutedCores` and no update: what `jaxmerge.fit`
      has as ``updates`` is run by `jaxmerge.models.with_updates`, and is no PEFT
      adapter. Equal numbers mean equal gates whatever they are, so there is no scale to
      search as for other learned merges.

    Source: CoMoL (arXiv 2603.00573), see `jaxmerge.route_cores`.

    >>> from jaxmerge.models import routed_product
    >>> from jaxmerge.stacks import stack_adapters
    >>> learned = core_router()
    >>> stack = stack_adapters([([[2.0]], [[3.0]]), ([[1.0]], [[4.0]])])
    >>> basis = learned.prepare(stack)
    >>> routed = learned.apply(learned.init(basis), basis)
    >>> print(routed_product(routed, jnp.ones((1, 1))).round(4))
    [[5.]]
    """
    added = 0 if frozen else 1
    return Learned(partial(route_cores, rank=rank), partial(_init, added), _apply)


def _init(added: int, routed: RoutedCores) -> jax.Array:
    tasks, p, q = routed.cores.shape
    return jnp.zeros((tasks, q + 1 + added * p * q), routed.cores.dtype)


def _apply(phi: jax.Array, routed: RoutedCores) -> Any:
    tasks, p, q = routed.cores.shape
    sizes = (q + 1, q + 1 + p * q)
    if phi.shape[0] != tasks or phi.shape[1] not in sizes:
        expected = " or ".join(f"({tasks}, {size})" for size in sizes)
        raise Refusal(f"coefficients {phi.shape}, expected {expected}")
    router = Router(weights=phi[:, :q], biases=phi[:, q])
    cores = routed.cores
    if phi.shape[1] > q + 1:
        size = linalg.root(jnp.sum(cores**2, axis=(1, 2), keepdims=True) / (p * q))
        cores = cores + size * phi[:, q + 1 :].reshape(tasks, p, q)
    return routed.replace(cores=cores, gates=router)
