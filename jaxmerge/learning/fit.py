"""A fit through a whole model: its steps, checkpoints and reports."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxmerge.folders import Folder
from jaxmerge.learning.apply import merge, prepared
from jaxmerge.learning.checkpoint import Checkpoints
from jaxmerge.learning.identity import fit_identity
from jaxmerge.learning.loop import History, joined, of_tasks, program_of, run_steps
from jaxmerge.learning.objectives import smooth_tchebycheff
from jaxmerge.learning.step import (
    Losses,
    Penalty,
    Phis,
    Problem,
    Scalarise,
    check_preference,
    check_tasks,
    first_state,
)
from jaxmerge.spread import on_all
from jaxmerge.stats.moments import Statistics
from jaxmerge.types import AdapterStack, Learned, Update


class Progress(NamedTuple):
    """What is reported after every compiled call."""

    step: int
    steps: int
    history: History  # of the steps since the last report
    phis: dict[str, np.ndarray]


class Fitted(NamedTuple):
    """Result of `fit`; with a front of P preferences every array has a leading P."""

    phis: Phis
    updates: dict[str, Update]
    history: History


def fit(
    learned: Learned,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    losses: Losses,
    batches: Iterable[Mapping[str, Any]],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    params: Any = None,
    stats: Mapping[str, Statistics] | None = None,
    scalarise: Scalarise = smooth_tchebycheff,
    preference: jax.Array | None = None,
    penalty: Penalty | None = None,
    start: Mapping[str, jax.Array] | None = None,
    shared: bool = False,
    accumulate: bool = False,
    steps_per_call: int = 10,
    mesh: Mesh | None = None,
    checkpoint: Folder | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Fitted:
    """Fits the coefficients phi of a learned merge by gradient descent.

    Each step lowers ``scalarise([f_1 .. f_T]) + penalty`` where f_t is the loss of task
    t on its batch, in the model with the merged updates. ``steps_per_call`` steps are
    one compiled program (``lax.scan``) that reuses the memory of its state.
    Computation follows the placement of ``params`` and batches; phi is replicated. In
    several processes each makes the same call; the first writes the checkpoints.

    Args:
      learned: `tara_a`, `tara_b`, `adamerging`, what `compose` makes of them, or
        `core_router`.
      tasks: names of the adapters, in the order of the stacks; also the order of
        ``preference`` and of the history.
      stacks: module -> adapters.
      losses: ``(params, updates, {task: batch}) -> {task: scalar}``, for whichever
        tasks are in the dict.
      batches: for each step a dict of task -> batch. Shapes stay the same from step to
        step and may differ between tasks. To resume, it is iterated from the start
        again and must give the same batches.
      optimizer: any optax optimiser.
      steps: how many in all, those before an interruption included.
      params: passed to the losses: a large model belongs here, not into a closure.
      stats: module -> statistics of the inputs of all tasks, stacked, where ``learned``
        needs them (`jaxmerge.regmean_adapters`).
      scalarise: `smooth_tchebycheff` (default) or `linear_scalarisation`, with further
        arguments bound by ``functools.partial``.
      preference: rho [T]; or [P, T], to fit P merges, a Pareto front, in one program.
      penalty: ``(phis, updates) -> scalar``, added to the objective.
      start: module -> coefficients to begin with, such as those of `search_start`; the
        method's own unless given.
      shared: one phi for all modules, as in task-wise AdaMerging.
      accumulate: go through the tasks one by one, so that only one task's activations
        are in memory: first all losses without gradients, which give the exact weight
        of each task, then the gradients. Costs one more forward pass.
      steps_per_call: steps in one compiled call; nothing is reported, saved or checked
        in between.
      mesh: spreads the inputs of every batch over its axis ``data``
        (`jaxmerge.data_mesh`), which may lie in several processes; everything else lies
        whole on each device. Where batches and ``params`` are placed already none is
        needed.
      checkpoint: folder for orbax checkpoints, one after every call. If it holds any,
        the fit goes on from there, and ends with the same bits as without an
        interruption. They are refused by a fit with other adapters, tasks, preference,
        method, objective, penalty, losses or optimiser: functions are traced, and their
        operations and the arrays that they hold are compared, so that keep what you
        compute once, such as anchors. Of batches the first is compared, of ``params``
        shapes and some values. Another ``accumulate`` or ``steps_per_call`` is not
        refused, and may change bits.
      report: called after every compiled call.

    Returns:
      Fitted: coefficients, merged updates and history.

    Raises:
      FloatingPointError: a loss or its gradient is not finite; names task and step.
      ValueError: no step is asked for, batches end early or lack a task, or the
        checkpoint belongs to another fit or is further than ``steps``.

    Source: arXiv 2603.26299 (TARA), 2310.02575 (AdaMerging).

    >>> from jaxmerge.learning.coefficients import tara_a
    >>> from jaxmerge.stacks import stack_adapters
    >>> from jaxmerge.updates import dense
    >>> stacks = {"w": stack_adapters([([[1.0]], [[1.0]]), ([[1.0]], [[2.0]])])}
    >>> def losses(params, updates, batch):
    ...     merged = dense(updates["w"])[0, 0]
    ...     return {task: (merged - target) ** 2 for task, target in batch.items()}
    >>> batches = itertools.repeat({"low": np.float32(1), "high": np.float32(2)})
    >>> sgd, tasks = optax.sgd(0.05), ("low", "high")
    >>> fitted = fit(tara_a(), tasks, stacks, losses, batches, sgd, steps=50)
    >>> print(f"{dense(fitted.updates['w'])[0, 0]:.3f}")
    1.500
    """
    check_tasks(tasks, stacks)
    check_preference(tasks, preference, front=True)
    if steps < 1:
        raise ValueError(f"fit: steps={steps}; at least one is needed")
    problem = Problem(learned, tuple(tasks), losses, scalarise, penalty)
    bases = prepared(learned, stacks, stats)
    preference = None if preference is None else jnp.asarray(preference)
    front = preference is not None and preference.ndim == 2
    state = first = first_state(learned, bases, optimizer, shared=shared, start=start)
    if front and preference is not None:
        count = preference.shape[0]
        state = jax.tree.map(lambda x: jnp.stack([x] * count), state)
    program = program_of(problem, optimizer, accumulate=accumulate, front=front)
    bases, params, preference = on_all(mesh, (bases, params, preference))
    records: list[History] = []
    done = 0

    with contextlib.ExitStack() as stack:
        saved = None
        if checkpoint is not None:
            seen, batches = _peek(batches, tasks)
            given = (stacks, params, seen, preference)
            identity = fit_identity(problem, optimizer, first, *given, stats=stats)
            saved = stack.enter_context(Checkpoints(checkpoint, identity))
            done, state, history = saved.restore(state, steps)
            records = [] if history is None else [History(**history)]
        state = on_all(mesh, state)
        inputs = (state, bases, params, batches, preference)
        calls = {"steps": steps, "steps_per_call": steps_per_call, "mesh": mesh}
        for state, record in run_steps(program, *inputs, done=done, **calls):
            done += record.objective.shape[-1]
            records.append(record)
            if saved is not None:
                saved.save(done, state, joined(records)._asdict())
            if report is not None:
                report(Progress(done, steps, record, jax.device_get(state.phis)))

    finish = partial(merge, learned)
    finish = jax.vmap(finish, in_axes=(0, None)) if front else finish
    return Fitted(state.phis, finish(state.phis, bases), joined(records))


def _peek(
    batches: Iterable[Mapping[str, Any]], tasks: Sequence[str]
) -> tuple[dict[str, Any], Iterator[Mapping[str, Any]]]:
    """The first batch, and all of them."""
    batches = iter(batches)
    for first in batches:
        return of_tasks(first, tasks, 1), itertools.chain([first], batches)
    raise ValueError("batches end before the first step")
