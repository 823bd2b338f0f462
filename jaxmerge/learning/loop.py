"""Compiled steps of a fit, one call after the other."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from jaxmerge.learning.divergence import all_finite, explain
from jaxmerge.learning.step import (
    FitState,
    Phis,
    Problem,
    Record,
    gradient,
    gradient_by_task,
)
from jaxmerge.spread import check_devices, over_data

Step = Callable[..., tuple[FitState, Record]]


class History(NamedTuple):
    """Objective and losses of every step, before it changed phi; P only in a front."""

    objective: np.ndarray  # [(P,) steps]
    losses: np.ndarray  # [(P,) steps, T]


class Program(NamedTuple):
    """Compiled steps of a fit."""

    problem: Problem
    step: Step  # one, not compiled
    run: Step  # as many as the batches have
    front: bool


def program_of(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: bool = False,
    front: bool = False,
) -> Program:
    """The steps of a fit, compiled once for all modules and batches of one shape."""
    find = gradient_by_task if accumulate else gradient
    step = partial(_step, problem, optimizer, find)
    return Program(problem, step, _compiled(step, front=front), front)


def run_steps(
    program: Program,
    state: FitState,
    bases: Mapping[str, Any],
    params: Any,
    batches: Iterable[Mapping[str, Any]],
    preference: jax.Array | None,
    *,
    done: int = 0,
    steps: int,
    steps_per_call: int = 10,
    mesh: Mesh | None = None,
) -> Iterator[tuple[FitState, History]]:
    """State and history after every compiled call, of the steps that are not done yet.

    Raises:
      FloatingPointError: see `fit`.
      ValueError: batches that end early or lack a task.
    """
    problem, step, run, front = program
    for stacked in _chunks(batches, problem.tasks, done, steps, steps_per_call):
        stacked = over_data(mesh, stacked, axis=1)
        check_devices(params, stacked)
        before = jax.device_get(state)
        state, record = run(state, bases, params, stacked, preference)
        record = _history(record, front=front)
        if not all_finite((record, state.phis)):
            inputs = (bases, params, stacked, preference)
            explain(problem, step, inputs, before, state.phis, done, front=front)
        done += record.objective.shape[-1]
        yield state, record


def _step(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    find: Callable[..., tuple[Record, Phis]],
    state: FitState,
    bases: Mapping[str, Any],
    params: Any,
    batch: Mapping[str, Any],
    preference: jax.Array | None,
) -> tuple[FitState, Record]:
    record, change = find(problem, state.phis, bases, params, batch, preference)
    change, moments = optimizer.update(change, state.optimizer, state.phis)
    phis = cast(Phis, optax.apply_updates(state.phis, change))  # optax: any tree
    return FitState(phis, moments), record


def _compiled(step: Step, *, front: bool) -> Step:
    """Several steps in one program, a scan over batches [steps, ...]."""
    if front:
        step = jax.vmap(step, in_axes=(0, None, None, None, 0))

    @partial(jax.jit, donate_argnums=0)
    def run(
        state: FitState, bases: Any, params: Any, batches: Any, preference: Any
    ) -> tuple[FitState, Record]:
        def one(state: FitState, batch: Any) -> tuple[FitState, Record]:
            return step(state, bases, params, batch, preference)

        return lax.scan(one, state, batches)

    return run


def _chunks(
    batches: Iterable[Mapping[str, Any]],
    tasks: Sequence[str],
    done: int,
    steps: int,
    size: int,
) -> Iterator[dict[str, Any]]:
    """Batches of several steps, stacked, from step ``done`` on."""
    source = itertools.islice(iter(batches), done, None)
    while done < steps:
        count = min(size - done % size, steps - done)
        taken = list(itertools.islice(source, count))
        if len(taken) < count:
            raise ValueError(f"batches end after {done + len(taken)} of {steps} steps")
        chosen = [
            of_tasks(batch, tasks, step) for step, batch in enumerate(taken, done + 1)
        ]
        yield jax.tree.map(lambda *x: jnp.stack(x), *chosen)
        done += count


def of_tasks(
    batch: Mapping[str, Any], tasks: Sequence[str], step: int
) -> dict[str, Any]:
    """The batch of a step, in the order of the tasks, without any others."""
    for task in tasks:
        if task not in batch:
            raise ValueError(f"batches have no {task!r} at step {step}")
    return {task: batch[task] for task in tasks}


def _history(record: Record, *, front: bool) -> History:
    objective, losses = (np.asarray(x) for x in record)
    if front:  # a scan over steps of P fits
        objective, losses = np.moveaxis(objective, 1, 0), np.moveaxis(losses, 1, 0)
    return History(objective, losses)


def joined(records: list[History]) -> History:
    """One history of several that follow each other."""
    axis = records[0].objective.ndim - 1
    return History(*(np.concatenate(x, axis) for x in zip(*records, strict=True)))
