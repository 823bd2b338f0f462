"""The objective of a fit and its gradient in phi, for all tasks at once or one by one.

The model appears only as a pure function from parameters, merged updates and the
batches of some tasks to the losses of these tasks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxmerge.doors import check_model
from jaxmerge.learning.apply import SHARED, check_coefficients, merge
from jaxmerge.refusals import Refusal
from jaxmerge.stacks import task_updates
from jaxmerge.types import AdapterStack, Learned, Update

Phis = dict[str, jax.Array]
Updates = Mapping[str, Update]
Penalty = Callable[[Phis, Updates], jax.Array]


class Losses(Protocol):
    """The losses of the tasks in ``batch``, a scalar for each: {task: batch of it}.

    Pure, and differentiable in the updates. Being called with one or with all tasks, it
    is free to run tasks together that go through the model in one batch.
    """

    def __call__(
        self, params: Any, updates: Updates, batch: Mapping[str, Any]
    ) -> Mapping[str, jax.Array]: ...


class Scalarise(Protocol):
    """One objective from the losses [T] of all tasks, under a preference [T]."""

    def __call__(
        self, values: jax.Array, *, preference: jax.Array | None
    ) -> jax.Array: ...


class FitState(NamedTuple):
    """The state of a fit: what a step changes."""

    phis: Phis
    optimizer: optax.OptState


class Record(NamedTuple):
    """Objective and losses of a step, before it changed phi."""

    objective: jax.Array  # []
    losses: jax.Array  # [T]


class Problem(NamedTuple):
    """The functions and names that define a fit; its arrays are passed to the steps."""

    learned: Learned
    tasks: tuple[str, ...]
    losses: Losses
    scalarise: Scalarise
    penalty: Penalty | None = None


def first_phis(learned: Learned, bases: Mapping[str, Any], *, shared: bool) -> Phis:
    """phi as the method begins.

    Raises:
      ValueError: one phi for all modules, whose shapes differ.
    """
    phis = {name: learned.init(basis) for name, basis in bases.items()}
    if not shared:
        return phis
    shapes = {phi.shape: name for name, phi in phis.items()}
    if len(shapes) > 1:
        pairs = ", ".join(f"{name} {shape}" for shape, name in shapes.items())
        raise ValueError(f"modules of different shapes of phi share none: {pairs}")
    return {SHARED: next(iter(phis.values()))}


def first_state(
    learned: Learned,
    bases: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    shared: bool,
    start: Mapping[str, jax.Array] | None = None,
) -> FitState:
    """phi at its start, the method's own unless given, and the optimiser's state.

    Raises:
      ValueError: one phi for all modules, whose shapes differ; a start of other
        modules or shapes.
    """
    phis = first_phis(learned, bases, shared=shared)
    if start is not None:
        check_coefficients(learned, bases, start)
        phis = {name: jnp.array(start[name], phi.dtype) for name, phi in phis.items()}
    # a state may hold phi itself, as that of SAM does, and both are given to the steps
    moments = jax.tree.map(
        lambda x: x.copy() if isinstance(x, jax.Array) else x, optimizer.init(phis)
    )
    return FitState(phis, moments)


def scalarised(
    problem: Problem, losses: Mapping[str, jax.Array], preference: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Objective without its penalty, and the losses [T] in the order of the tasks."""
    for task in problem.tasks:
        if jnp.shape(losses[task]) != ():
            raise Refusal(
                f"the loss of {task!r} has shape {jnp.shape(losses[task])}; expected "
                "one number, such as its mean over the batch"
            )
    values = jnp.stack([losses[task] for task in problem.tasks])
    return problem.scalarise(values, preference=preference), values


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
        found = problem.losses(params, updates, batch)
        total, values = scalarised(problem, found, preference)
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
        partial(one_loss, problem, task, bases, params, batch) for task in problem.tasks
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
    of_merge = problem.penalty
    if of_merge is not None:

        def penalty(phis: Phis) -> jax.Array:
            return of_merge(phis, merge(problem.learned, phis, bases))

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
        task: jax.grad(partial(one_loss, problem, task, bases, params, batch))(phis)
        for task in problem.tasks
    }


def single_adapter_losses(
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    losses: Losses,
    batches: Iterable[Mapping[str, Any]],
    *,
    params: Any = None,
) -> jax.Array:
    """Mean loss of every task in the model that carries only its own adapter.

    These are the anchors z of `smooth_tchebycheff` in TARA's code.

    Args:
      tasks: names of the adapters, in the order of the stacks.
      stacks: module -> adapters.
      losses: as for `fit`.
      batches: dicts of task -> batch; the losses of a task are averaged over those that
        have it.
      params: passed to the losses.

    Returns:
      [T].

    Raises:
      ValueError: a stack of another number of adapters, or a task without a batch.
    """
    check_tasks(tasks, stacks)
    run, of_tasks = jax.jit(losses), batches_by_task(tasks, batches)
    means = []
    for index, task in enumerate(tasks):
        updates = task_updates(stacks, index)
        found = [run(params, updates, {task: own})[task] for own in of_tasks[task]]
        means.append(jnp.mean(jnp.stack(found)))
    return jnp.stack(means)


def check_tasks(tasks: Sequence[str], stacks: Mapping[str, AdapterStack]) -> None:
    """Refuses names that are not one for each adapter."""
    check_model("learning", stacks)
    for name, stack in stacks.items():
        if len(stack.ranks) != len(tasks):
            raise ValueError(
                f"{name}: {len(stack.ranks)} adapters, but {len(tasks)} tasks"
            )


def check_preference(
    tasks: Sequence[str], preference: Any, *, front: bool = False
) -> None:
    """Refuses what is not one number for each task, or several rows of them."""
    shape = None if preference is None else jnp.shape(preference)
    if shape is None or shape == (len(tasks),):
        return
    if not (front and len(shape) == 2 and shape[1] == len(tasks)):
        several = f" or [P, {len(tasks)}]" if front else ""
        raise Refusal(
            f"preference: expected [{len(tasks)}]{several}, one number for each task, "
            f"got {shape}"
        )


def batches_by_task(
    tasks: Sequence[str], batches: Iterable[Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """The batches of each task, which may differ in number.

    Raises:
      ValueError: a task without any.
    """
    batches = list(batches)
    found = {task: [b[task] for b in batches if task in b] for task in tasks}
    for task, own in found.items():
        if not own:
            raise ValueError(f"{task!r} needs at least one batch")
    return found


def one_loss(
    problem: Problem,
    task: str,
    bases: Mapping[str, Any],
    params: Any,
    batch: Mapping[str, Any],
    phis: Phis,
) -> jax.Array:
    """The loss of one task, as a function of phi."""
    updates = merge(problem.learned, phis, bases)
    return problem.losses(params, updates, {task: batch[task]})[task]
