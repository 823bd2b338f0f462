"""Coefficients learned block by block, without a backward pass through the model."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxmerge.folders import Folder
from jaxmerge.learning.apply import merge, prepared
from jaxmerge.learning.checkpoint import Checkpoints
from jaxmerge.learning.distillation import Distance, Taught, feature_distillation
from jaxmerge.learning.fit import Fitted, Progress
from jaxmerge.learning.identity import fit_identity, parameters_digest, tree_digest
from jaxmerge.learning.loop import History, joined, program_of, run_steps
from jaxmerge.learning.objectives import linear_scalarisation, relative_distance
from jaxmerge.learning.start import equal_phis, scale_program, search_scale
from jaxmerge.learning.step import (
    Losses,
    Phis,
    Problem,
    Scalarise,
    Updates,
    check_preference,
    check_tasks,
    first_phis,
    first_state,
)
from jaxmerge.learning.streams import Visit, blocks_of, walk
from jaxmerge.models.adapt import Apply
from jaxmerge.models.blocks import Blocks, Stream
from jaxmerge.stats.moments import Statistics
from jaxmerge.tasks.unlabeled import task_batches
from jaxmerge.types import AdapterStack, Learned

Bases = Mapping[str, Any]
Told = Mapping[str, Statistics] | None


class Method(NamedTuple):
    """How the coefficients of a block are found from what has come to it.

    Attributes:
      solve: (visit, bases, first coefficients) -> coefficients and history [steps].
      identity: of the same and the block's statistics, digests of what determines the
        result.
    """

    solve: Callable[[Visit, Bases, Phis], tuple[Phis, History]]
    identity: Callable[[Visit, Bases, Phis, Told], dict[str, str]]


def fit_blocks(
    learned: Learned,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    model: Blocks,
    inputs: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    params: Any,
    stats: Told = None,
    batch: int = 16,
    seed: int = 0,
    distance: Distance = relative_distance,
    scalarise: Scalarise = linear_scalarisation,
    preference: ArrayLike | None = None,
    search: int = 4,
    steps_per_call: int = 10,
    checkpoint: Folder | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Fitted:
    """Fits the coefficients of a learned merge to the outputs of each block.

    Block by block, phi lowers the distance of what leaves the block in the merged model
    from what leaves it in the model with the task's own adapter, each on the stream of
    its own; then both streams go on. So errors of earlier blocks are seen by later
    ones, which can make up for them.

    Args:
      learned: `tara_a`, `tara_b`, `adamerging`, or what `compose` makes of them.
      tasks: names of the adapters, in the order of the stacks.
      stacks: module -> adapters.
      model: a model in blocks, as `jaxmerge.models.decoder_blocks` gives it.
      inputs: task -> inputs [N, ...]; some dozens are enough.
      optimizer: any optax optimiser; it begins anew in every block.
      steps: in each block.
      params: of the model.
      stats: module -> statistics of the inputs of all tasks, see `fit`.
      batch: inputs of each task in a step.
      seed: of the order of the inputs.
      distance: ``(teacher, student, *, mask) -> scalar``: `relative_distance`,
        `squared_distance` as in ProDistill, or `cosine_distance`.
      scalarise: see `fit`, and so ``preference`` [T] and ``steps_per_call``.
      search: batches from which each block's first scale is searched (`search_start`);
        with 0 it is the method's own.
      checkpoint: folder for orbax checkpoints, one after every block, see `fit`.
      report: called after every block; its history is that of the block, and its steps
        are blocks.

    Returns:
      Fitted; objective [L, steps] and losses [L, steps, T] of the L blocks that have
      adapters.

    Raises:
      FloatingPointError: see `fit`.
      ValueError: adapters of a module that lies in no block, or as for `fit`.

    Memory: on the device one block with the activations of one batch; on the host two
    hidden states of every input.

    Cost: with as many steps as `fit` has, that of `fit`.

    Source: ProDistill (arXiv 2502.12706), which learns a number for every entry of full
    fine-tunes so; here they are those of any learned merge of adapters.
    """
    rho = None if preference is None else jnp.asarray(preference)
    check_preference(tasks, rho)
    seeds = {task: (seed, zlib.crc32(task.encode())) for task in tasks}

    @cache
    def programs(apply: Apply) -> tuple[Any, Any]:
        losses = block_losses(apply, distance)
        problem = Problem(learned, tuple(tasks), losses, scalarise)
        return program_of(problem, optimizer), scale_program(problem)

    def batches(visit: Visit) -> Any:
        known = {
            task: Taught(visit.merged[task], visit.taught[task].hidden)
            for task in tasks
        }
        return task_batches(known, size=batch, seeds=seeds)

    def solve(visit: Visit, bases: Bases, phis: Phis) -> tuple[Phis, History]:
        program, at_scale = programs(visit.block.apply)
        if search:
            given = (phis, bases, visit.params)
            found = search_scale(
                lambda scale, some: at_scale(jnp.float32(scale), *given, some, rho),
                list(islice(batches(visit), search)),
            )
            phis = equal_phis(phis, found.scale)
        state = first_state(learned, bases, optimizer, shared=False, start=phis)
        given = (state, bases, visit.params, batches(visit), rho)
        calls = run_steps(program, *given, steps=steps, steps_per_call=steps_per_call)
        states, records = zip(*calls, strict=True)
        return states[-1].phis, joined(list(records))

    def identity(visit: Visit, bases: Bases, phis: Phis, told: Told) -> dict[str, str]:
        problem = programs(visit.block.apply)[0].problem
        state = first_state(learned, bases, optimizer, shared=False, start=phis)
        first = next(batches(visit))
        given = (visit.stacks, visit.params, first, rho)
        settings = (steps, batch, seed, search)
        return fit_identity(problem, optimizer, state, *given, stats=told) | {
            "settings": str(settings)
        }

    return in_blocks(
        *(learned, tasks, stacks, model, inputs, Method(solve, identity)),
        params=params,
        stats=stats,
        size=batch,
        checkpoint=checkpoint,
        report=report,
    )


def block_losses(apply: Apply, distance: Distance) -> Losses:
    """Distances of what leaves a block from the answers of `Taught`, task by task."""

    def compare(
        teacher: jax.Array, student: Stream, *, mask: jax.Array | None
    ) -> jax.Array:
        del mask  # the stream has its own
        return distance(teacher, student.hidden, mask=student.visible)

    return feature_distillation(apply, distance=compare)


def in_blocks(
    learned: Learned,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    model: Blocks,
    inputs: Mapping[str, Any],
    method: Method,
    *,
    params: Any,
    stats: Told,
    size: int,
    checkpoint: Folder | None,
    report: Callable[[Progress], None] | None,
) -> Fitted:
    """Finds the coefficients of block after block, and keeps those that are found."""
    check_tasks(tasks, stacks)
    bases = prepared(learned, stacks, stats)
    phis = first_phis(learned, bases, shared=False)
    places = blocks_of(model, stacks)
    done, visited, saved = 0, 0, None
    records: list[History] = []
    merged: dict[str, Any] = {}

    def merge_block(visit: Visit) -> Updates:
        nonlocal done, visited, saved, phis, records
        names = places[visit.block.prefix]
        inside = {name: bases[whole] for name, whole in names.items()}
        if checkpoint is not None and saved is None:
            first = {name: phis[whole] for name, whole in names.items()}
            told = stats and {name: stats[whole] for name, whole in names.items()}
            identity = method.identity(visit, inside, first, told) | {
                "adapters": tree_digest((stacks, stats)),
                "parameters": parameters_digest(params),
                "inputs": tree_digest(inputs),
                "blocks": ", ".join(places),
            }
            saved = opened.enter_context(Checkpoints(checkpoint, identity))
            done, phis, known = saved.restore(phis, len(places))
            if known is not None:
                found = History(**known)
                records = [History(*x) for x in zip(*found, strict=True)]
        visited += 1
        if visited > done:
            first = {name: phis[whole] for name, whole in names.items()}
            own, record = method.solve(visit, inside, first)
            phis = phis | {whole: own[name] for name, whole in names.items()}
            records.append(record)
            if saved is not None:
                saved.save(visited, phis, _stacked(records)._asdict())
            if report is not None:
                report(Progress(visited, len(places), record, jax.device_get(own)))
        updates = merge(learned, {n: phis[names[n]] for n in names}, inside)
        merged.update({names[name]: update for name, update in updates.items()})
        return updates

    with ExitStack() as opened:
        walk(model, tasks, stacks, inputs, merge_block, params=params, size=size)
    return Fitted(phis, {name: merged[name] for name in stacks}, _stacked(records))


def _stacked(records: Sequence[History]) -> History:
    return History(*(np.stack(x) for x in zip(*records, strict=True)))
