"""What can be kept of T adapters, and how many numbers that takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxmerge as jm
from experiments.records import Records
from jaxmerge.tasks import Base
from jaxmerge.types import RoutedCores

TIMED_RUNS, TIMED_WIDTHS = 9, (16, 32, None)

Updates = Mapping[str, jm.Update | RoutedCores]
Stacks = Mapping[str, jm.AdapterStack]


class Kept(NamedTuple):
    """What is kept of T adapters.

    Attributes:
      of_task: task -> what runs in the model on its inputs.
      numbers: how many are stored beside the base.
    """

    of_task: Mapping[str, Updates]
    numbers: int


class Way(NamedTuple):
    """A way of keeping T adapters.

    Attributes:
      name: in the table.
      told: what it must be told of an input, such as "the task", otherwise "".
      keep: from a comparison to what is kept.
      known: the row of the comparison that measured it already, if any did.
    """

    name: str
    told: str
    keep: Callable[[Any], Kept]
    known: Mapping[str, str] = {}


def of_adapters(keep: Callable[..., Kept], **options: Any) -> Callable[[Any], Kept]:
    """A way that needs nothing but the adapters of a comparison."""

    def kept(comparison: Any) -> Kept:
        return keep(comparison.tasks, comparison.stacks, **options)

    return kept


def numbers_of(updates: object) -> int:
    """How many numbers some arrays hold."""
    return sum(x.size for x in jax.tree.leaves(updates))


def one_for_all(
    tasks: Sequence[str], updates: Mapping[str, jm.Update], *, rank: int | None = None
) -> Kept:
    """One merge, in the weights of the base, or as an adapter of a rank."""
    if rank is None:
        return Kept(dict.fromkeys(tasks, updates), 0)
    updates = {m: jm.truncate(update, rank=rank) for m, update in updates.items()}
    return Kept(dict.fromkeys(tasks, updates), numbers_of(updates))


def all_adapters(tasks: Sequence[str], stacks: Stacks) -> Kept:
    """Every adapter as it is."""
    found = {task: jm.task_updates(stacks, t) for t, task in enumerate(tasks)}
    return Kept(found, numbers_of(found))


def truncated(tasks: Sequence[str], stacks: Stacks, *, rank: int) -> Kept:
    """Each adapter at a smaller rank."""
    cut = partial(jm.truncate, rank=rank)
    found = {
        task: {m: cut(update) for m, update in jm.task_updates(stacks, t).items()}
        for t, task in enumerate(tasks)
    }
    return Kept(found, numbers_of(found))


def routed_cores(
    tasks: Sequence[str],
    stacks: Stacks,
    *problem: Any,
    params: Any,
    rank: int | None,
    frozen: bool,
    rate: float,
    steps: int,
    report: Callable[[jm.Progress], None] | None = None,
) -> Kept:
    """Routed cores whose gates, or cores too, losses on batches teach, the problem."""
    fitted = jm.fit(
        *(jm.core_router(rank=rank, frozen=frozen), tasks, stacks, *problem),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
        steps=steps,
        params=params,
        report=report,
    )
    return Kept(dict.fromkeys(tasks, fitted.updates), numbers_of(fitted.updates))


def half(tasks: int) -> int:
    return tasks // 2


def all_but_one(tasks: int) -> int:
    return tasks - 1


def compressed(
    tasks: Sequence[str],
    stacks: Stacks,
    *,
    count: Callable[[int], int] = int,
    rank: int | None = None,
) -> Kept:
    """Adapters in terms of components that they share, of a number by that of tasks."""
    components = count(len(tasks))
    compress = partial(jm.compress_adapters, components=components, rank=rank)
    merges = jm.map_modules(compress, stacks)
    curves = jm.map_modules(partial(jm.compression_curve, rank=rank), stacks)
    restore = jax.jit(jm.restore_adapter)
    found = {
        task: {module: restore(merge, t) for module, merge in merges.items()}
        for t, task in enumerate(tasks)
    }
    numbers = sum(int(curve.numbers[components - 1]) for curve in curves.values())
    return Kept(found, numbers)


def add_times(records: Records, base: Base, inputs: Any, stacks: Stacks) -> None:
    """A row for each thing that runs in the model, if there is none yet."""
    count = len(jax.tree.leaves(inputs)[0])
    if not records.all(kind="time"):
        for name, seconds in forward_times(base, inputs, stacks).items():
            records.add(kind="time", runs=name, seconds=seconds, inputs=count)


def forward_times(base: Base, inputs: Any, stacks: Stacks) -> dict[str, float]:
    """Least processor time of the model on one batch, in seconds, by what runs in it.

    Rounds are in turn. What a router says does not change its time.
    """
    inputs = jax.tree.map(jnp.asarray, inputs)
    timed: dict[str, Updates] = {
        "the base, or a merge in its weights": {},
        "one adapter beside the weights": jm.task_updates(stacks, 0),
    }
    for width in TIMED_WIDTHS:
        learned = jm.core_router(rank=width)
        bases = jm.map_modules(learned.prepare, stacks)
        phis = {module: learned.init(basis) for module, basis in bases.items()}
        routed = {m: learned.apply(phi, bases[m]) for m, phi in phis.items()}
        timed[f"routed cores, {f'width {width}' if width else 'all directions'}"] = (
            routed
        )

    @jax.jit
    def run(params: Any, updates: Updates, inputs: Any) -> Any:
        return jm.models.with_updates(base.apply, updates)(params, inputs)

    found = dict.fromkeys(timed, float("inf"))
    for turn in range(TIMED_RUNS + 1):  # the first one compiles
        for name, updates in timed.items():
            started = time.process_time()
            jax.block_until_ready(run(base.params, dict(updates), inputs))
            if turn:
                found[name] = min(found[name], time.process_time() - started)
    return found
