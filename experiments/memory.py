"""Accuracy over memory: what lies between one merged adapter and all of them.

    python -m experiments.memory vision8

Needs what ``python -m experiments.run`` needs, and its results: the merges are those
that it chose. Each way of keeping T adapters is a line of ``results/memory.jsonl``,
written as it is measured; ``memory.md`` and ``memory.png`` beside it show all of them.
Routed cores learn their gates, and some their cores, from validation inputs without
labels: `STEPS` steps of `BATCH` inputs of each task at one rate, nothing is chosen.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer

import jaxmerge as jm
from experiments.evaluation import hits, make_exam, own_hits, shares
from experiments.intervals import Right
from experiments.methods import BY_NAME, Fitted
from experiments.records import Records, packed
from experiments.report_memory import draw, tables
from experiments.run import CONFIGS, HERE, Experiment, open_experiment
from experiments.unlabeled import shuffled_batches
from jaxmerge.runtime import start_jax
from jaxmerge.types import RoutedCores

TEST, TRIED = 1000, 200  # inputs of each task: of the test, and to choose scales on
STEPS, BATCH, RATE, SEED = 200, 8, 0.03, 0
GROUP_SCALES = (0.25, 0.5)
TIMED_BATCH, TIMED_RUNS, TIMED_WIDTHS = 64, 9, (16, 32, None)
Updates = Mapping[str, jm.Update | RoutedCores]


class Kept(NamedTuple):
    """What is kept of T adapters.

    Attributes:
      of_task: task -> what runs in the model on its inputs.
      numbers: how many are stored beside the base.
    """

    of_task: Mapping[str, Updates]
    numbers: int


class Way(NamedTuple):
    """A way of keeping T adapters; whether it must be told the task of an input."""

    name: str
    told: str  # "the task", "the group" or ""
    keep: Callable[[Experiment], Kept]


def one_merge(method: str, experiment: Experiment, *, rank: int | None = None) -> Kept:
    """The merge that the comparison chose, as an adapter of a rank, or in the base."""
    chosen, candidate = BY_NAME[method], experiment.chosen(method)
    if isinstance(chosen, Fitted):
        updates = experiment.fitted(chosen, candidate, SEED)
    else:
        updates = experiment.closed_form(candidate["pipeline"], SEED)
    numbers = 0
    if rank is not None:
        updates = {m: jm.truncate(update, rank=rank) for m, update in updates.items()}
        numbers = sum(x.size for x in jax.tree.leaves(updates))
    return Kept(dict.fromkeys(experiment.tasks, updates), numbers)


def group_merges(groups: int, experiment: Experiment) -> Kept:
    """TSV-M of each group of adapters that are alike, as an adapter of one's rank."""
    tasks, stacks = experiment.tasks, experiment.stacks
    found = jm.diagnostics.cluster_adapters(tasks, stacks, groups=groups)
    exam = make_exam(experiment.suite, "validation", rows=TRIED)
    own = shares(own_hits(exam, stacks))
    tried = {}
    for scale in GROUP_SCALES:
        merged, scores, numbers = {}, [], 0
        for group in found:
            others = {tasks.index(task) for task in set(tasks) - set(group)}
            rank = max(next(iter(stacks.values())).ranks)
            text = f"tsv_m|scale({scale})|truncate(rank={rank})"
            some = {m: jm.leave_out(stack, others) for m, stack in stacks.items()}
            alone = {m: stack for m, stack in some.items() if stack is not None}
            if len(group) == 1:
                text = "concat"
            updates = jm.parse(text).run(alone)
            numbers += sum(x.size for x in jax.tree.leaves(updates))
            right = shares(hits(exam, updates, group))
            scores += [right[task] / own[task] for task in group]
            merged |= dict.fromkeys(group, updates)
        tried[scale] = (float(np.mean(scores)), Kept(merged, numbers))
    return max(tried.values(), key=lambda pair: pair[0])[1]


def truncated(rank: int, experiment: Experiment) -> Kept:
    """Each adapter at a smaller rank."""
    found = {
        task: {
            module: jm.truncate(update, rank=rank)
            for module, update in jm.task_updates(experiment.stacks, t).items()
        }
        for t, task in enumerate(experiment.tasks)
    }
    return Kept(found, sum(x.size for x in jax.tree.leaves(found)))


def half(tasks: int) -> int:
    return tasks // 2


def all_but_one(tasks: int) -> int:
    return tasks - 1


def compressed(
    experiment: Experiment,
    *,
    count: Callable[[int], int] = int,
    rank: int | None = None,
) -> Kept:
    """Adapters in terms of components that they share, of a number by that of tasks."""
    stacks, components = experiment.stacks, count(len(experiment.tasks))
    compress = partial(jm.compress_adapters, components=components, rank=rank)
    merges = jm.map_modules(compress, stacks)
    curves = jm.map_modules(partial(jm.compression_curve, rank=rank), stacks)
    restore = jax.jit(jm.restore_adapter)
    found = {
        task: {module: restore(merge, t) for module, merge in merges.items()}
        for t, task in enumerate(experiment.tasks)
    }
    numbers = sum(int(curve.numbers[components - 1]) for curve in curves.values())
    return Kept(found, numbers)


def routed(
    experiment: Experiment, *, rank: int | None = None, frozen: bool = True
) -> Kept:
    """Routed cores whose gates, or cores too, the adapters teach."""
    learning, tasks = experiment.learning, experiment.tasks
    batches = shuffled_batches(learning.taught, size=BATCH, seed=SEED)
    fitted = jm.fit(
        *(jm.core_router(rank=rank, frozen=frozen), tasks, experiment.stacks),
        *(learning.losses["distillation"], batches),
        optax.adam(optax.cosine_decay_schedule(RATE, STEPS)),
        steps=STEPS,
        params=learning.suite.base.params,
    )
    numbers = sum(x.size for x in jax.tree.leaves(fitted.updates))
    return Kept(dict.fromkeys(tasks, fitted.updates), numbers)


def all_adapters(experiment: Experiment) -> Kept:
    """Every adapter as it is."""
    stacks, tasks = experiment.stacks, experiment.tasks
    found = {task: jm.task_updates(stacks, t) for t, task in enumerate(tasks)}
    return Kept(found, sum(x.size for x in jax.tree.leaves(found)))


WAYS = (
    Way("TSV-M, in the weights", "", partial(one_merge, "TSV-M")),
    Way("TSV-M, rank 16", "", partial(one_merge, "TSV-M", rank=16)),
    Way("TARA-B taught, in the weights", "", partial(one_merge, "TARA-B, taught")),
    Way("TARA-B taught, rank 16", "", partial(one_merge, "TARA-B, taught", rank=16)),
    Way("2 groups, TSV-M, rank 16", "the group", partial(group_merges, 2)),
    Way("4 groups, TSV-M, rank 16", "the group", partial(group_merges, 4)),
    *(Way(f"adapters, rank {r}", "the task", partial(truncated, r)) for r in (1, 2, 4)),
    *(
        Way(f"cores, width {r}", "the task", partial(compressed, rank=r))
        for r in (16, 32, 48)
    ),
    Way(
        "half of the components, width 32",
        "the task",
        partial(compressed, count=half, rank=32),
    ),
    Way("half of the components", "the task", partial(compressed, count=half)),
    Way("all components but one", "the task", partial(compressed, count=all_but_one)),
    Way("routed cores, width 16", "", partial(routed, rank=16)),
    Way("routed and learned, width 16", "", partial(routed, rank=16, frozen=False)),
    Way("routed cores, width 32", "", partial(routed, rank=32)),
    Way("routed and learned, width 32", "", partial(routed, rank=32, frozen=False)),
    Way("routed cores, all directions", "", routed),
    Way("all adapters", "the task", all_adapters),
)


def measure(way: Way, experiment: Experiment, exam: Any) -> dict[str, Any]:
    """Answers on test, numbers that are stored, and seconds that making it took."""
    started = time.perf_counter()
    kept = way.keep(experiment)
    jax.block_until_ready(kept.of_task)
    seconds = time.perf_counter() - started
    right: Right = {}
    groups: dict[int, list[str]] = {}
    for task, updates in kept.of_task.items():
        groups.setdefault(id(updates), []).append(task)
    for group in groups.values():
        right = {**right, **hits(exam, kept.of_task[group[0]], tuple(group))}
    return {
        "told": way.told,
        "numbers": kept.numbers,
        "accuracy": shares(right),
        "hits": packed(right),
        "seconds": seconds,
    }


def forward_times(experiment: Experiment) -> dict[str, float]:
    """Least processor time of the model on one batch, in seconds, by what runs in it.

    Rounds are in turn. What a router says does not change its time.
    """
    base, task = experiment.suite.base, experiment.suite.tasks[0]
    images = task.load("validation").first(TIMED_BATCH).inputs
    inputs, stacks = jax.tree.map(jnp.asarray, images), experiment.stacks
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


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")],
    only: Annotated[list[str] | None, typer.Option(help="a way; repeat")] = None,
) -> None:
    """Measures what is missing, and writes table and plot."""
    start_jax()
    folder = HERE / name / "results"
    experiment, records = open_experiment(name), Records(folder / "memory.jsonl")
    exam = make_exam(experiment.suite, "test", rows=TEST)
    nothing = Kept({task: {} for task in experiment.tasks}, 0)
    ways = (Way("base", "", lambda _: nothing), *WAYS)
    for way in ways:
        if records.find(way=way.name) is None and (not only or way.name in only):
            row = records.add(way=way.name, **measure(way, experiment, exam))
            print(way.name, row["numbers"], np.mean(list(row["accuracy"].values())))
    if not records.all(kind="time") and not only:
        for name_of, seconds in forward_times(experiment).items():
            records.add(kind="time", runs=name_of, seconds=seconds, inputs=TIMED_BATCH)
    (folder / "memory.md").write_text(tables(records), encoding="utf-8")
    draw(records, folder / "memory.png")


if __name__ == "__main__":
    typer.run(main)
