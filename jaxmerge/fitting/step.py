"""One step of a fit: losses of the tasks, their scalarisation, the optimiser's update.

The model appears only as losses: for each task a pure function of parameters, merged
updates and a batch. Everything that is fitted is phi, a dict of arrays.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxmerge.types import AdapterStack, Learned, LowRank, Update

SHARED = "every module"  # the only key of phis that all modules share

Phis = dict[str, jax.Array]
Updates = Mapping[str, Update]
Penalty = Callable[[Phis, Updates], jax.Array]


class TaskLoss(Protocol):
    """The loss of one task, a scalar: pure, differentiable in the updates."""

    def __call__(self, params: Any, updates: Updates, batch: Any) -> jax.Array: ...


class Scalarise(Protocol):
    """One objective from the losses [T] of all tasks, under a preference [T]."""

    def __call__(
        self, values: jax.Array, *, preference: jax.Array | None
    ) -> jax.Array: ...


class FitState(NamedTuple):
    """What a step changes."""

    phis: Phis
    optimizer: optax.OptState


class Record(NamedTuple):
    """What a step saw, before it changed phi."""

    objective: jax.Array  # []
    losses: jax.Array  # [T]


class Problem(NamedTuple):
    """What a fit is about; arrays are passed to its steps instead."""

    learned: Learned
    losses: Mapping[str, TaskLoss]
    scalarise: Scalarise
    penalty: Penalty | None = None


def first_state(
    learned: Learned,
    bases: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    shared: bool,
) -> FitState:
    """phi at its start, and the optimiser's state for it.

    Raises:
      ValueError: one phi for all modules, whose shapes differ.
    """
    phis = {name: learned.init(basis) for name, basis in bases.items()}
    if shared:
        shapes = {phi.shape: name for name, phi in phis.items()}
        if len(shapes) > 1:
            pairs = ", ".join(f"{name} {shape}" for shape, name in shapes.items())
            raise ValueError(f"modules of different shapes of phi share none: {pairs}")
        phis = {SHARED: next(iter(phis.values()))}
    return FitState(phis, optimizer.init(phis))


def merge(
    learned: Learned, phis: Mapping[str, jax.Array], bases: Mapping[str, Any]
) -> dict[str, Update]:
    """The merged update of every module."""
    return {
        name: learned.apply(phis[SHARED if SHARED in phis else name], basis)
        for name, basis in bases.items()
    }


def gradient(
    problem: Problem,
    phis: Phis,
    bases: Mapping[str, Any],
    params: Any,
    batch: Mapping[str, Any],
    preference: jax.Array | None,
) -> tuple[Record, Phis]:
    """Objective, losses and the gradient in phi, all tasks at once."""

    def objective(phis: Phis) -> tuple[jax.Array, jax.Array]:
        updates = merge(problem.learned, phis, bases)
        values = jnp.stack(
            [loss(params, updates, batch[t]) for t, loss in problem.losses.items()]
        )
        total = problem.scalarise(values, preference=preference)
        if problem.penalty is not None:
            total = total + problem.penalty(phis, updates)
        return total, values

    (total, values), change = jax.value_and_grad(objective, has_aux=True)(phis)
    return Record(total, values), change


def gradient_by_task(
    problem: Problem,
    phis: Phis,
    bases: Mapping[str, Any],
    params: Any,
    batch: Mapping[str, Any],
    preference: jax.Array | None,
) -> tuple[Record, Phis]:
    """The same as `gradient`, with the activations of one task at a time.

    With ``w = d scalarise / d f`` at the losses f, the gradient is
    ``sum_t w_t d f_t / d phi``: a first pass over the tasks gives f, a second the sum.
    """
    branches = [
        partial(_one_loss, problem.learned, loss, bases, params, batch[task])
        for task, loss in problem.losses.items()
    ]
    tasks = jnp.arange(len(branches))
    values = lax.map(lambda t: lax.switch(t, branches, phis), tasks)
    scalarise = partial(problem.scalarise, preference=preference)
    total, weights = jax.value_and_grad(scalarise)(values)

    def add(change: Phis, task: tuple[jax.Array, jax.Array]) -> tuple[Phis, None]:
        index, weight = task
        each = [jax.grad(branch) for branch in branches]
        of_task = lax.switch(index, each, phis)
        return jax.tree.map(lambda x, y: x + weight * y, change, of_task), None

    change, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, phis), (tasks, weights))
    if problem.penalty is not None:

        def penalty(phis: Phis) -> jax.Array:
            return problem.penalty(phis, merge(problem.learned, phis, bases))

        added, more = jax.value_and_grad(penalty)(phis)
        total, change = total + added, jax.tree.map(jnp.add, change, more)
    return Record(total, values), change


def task_gradients(
    problem: Problem,
    phis: Phis,
    bases: Mapping[str, Any],
    params: Any,
    batch: Mapping[str, Any],
) -> dict[str, Phis]:
    """``d f_t / d phi`` for every task: the task-direction Jacobian, row by row."""
    return {
        task: jax.grad(
            partial(_one_loss, problem.learned, loss, bases, params, batch[task])
        )(phis)
        for task, loss in problem.losses.items()
    }


def single_adapter_losses(
    losses: Mapping[str, TaskLoss],
    stacks: Mapping[str, AdapterStack],
    batches: list[Mapping[str, Any]],
    *,
    params: Any = None,
) -> jax.Array:
    """Mean loss of every task in the model that carries only its own adapter.

    These are the anchors z of `smooth_tchebycheff` in TARA's code.

    Args:
      losses: task -> loss, as for `fit`; in the order of the adapters in the stacks.
      stacks: module -> adapters, with one adapter for each loss.
      batches: dicts of task -> batch; the losses are averaged over them.
      params: passed to the losses.

    Returns:
      [T].

    Raises:
      ValueError: as many losses as adapters are needed, and at least one batch.
    """
    if not batches:
        raise ValueError("single_adapter_losses needs at least one batch")
    means = []
    for index, (task, loss) in enumerate(losses.items()):
        updates = {}
        for name, stack in stacks.items():
            if len(stack.ranks) != len(losses):
                raise ValueError(
                    f"{name}: {len(stack.ranks)} adapters, {len(losses)} losses"
                )
            rank = stack.ranks[index]
            if rank > 0:
                factors = LowRank(stack.b[index, :, :rank], stack.a[index, :rank])
                updates[name] = factors
        run = jax.jit(loss)
        found = [run(params, updates, batch[task]) for batch in batches]
        means.append(jnp.mean(jnp.stack(found)))
    return jnp.stack(means)


def _one_loss(learned, loss, bases, params, batch, phis):
    return loss(params, merge(learned, phis, bases), batch)
