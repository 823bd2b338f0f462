"""Accuracy over memory: what lies between one merged adapter and all of them.

    python -m experiments.memory vision8

Needs what ``python -m experiments.run`` needs, and its results: the merges are those
that it chose. Each way of keeping T adapters is a line of ``results/memory.jsonl``,
written as it is measured; ``memory.md`` and ``memory.png`` beside it show all of them.
Routed cores learn their gates, and some their cores, from validation inputs without
labels: `STEPS` steps of `BATCH` inputs of each task at one rate, nothing is chosen.
"""

import time
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxmerge as jm
from experiments.evaluation import hits, make_exam, own_hits, shares
from experiments.intervals import Right
from experiments.keeping import (
    Kept,
    Way,
    add_times,
    all_adapters,
    all_but_one,
    compressed,
    half,
    numbers_of,
    of_adapters,
    one_for_all,
    routed_cores,
    truncated,
)
from experiments.methods import BY_NAME, Fitted
from experiments.records import Records, packed
from experiments.report_memory import draw, tables
from experiments.run import CONFIGS, HERE, Experiment, open_experiment
from experiments.unlabeled import shuffled_batches
from jaxmerge.runtime import start_jax

TEST, TRIED = 1000, 200  # inputs of each task: of the test, and to choose scales on
STEPS, BATCH, RATE, SEED = 200, 8, 0.03, 0
GROUP_SCALES = (0.25, 0.5)
TIMED_BATCH = 64


def one_merge(method: str, experiment: Experiment, *, rank: int | None = None) -> Kept:
    """The merge that the comparison chose, as an adapter of a rank, or in the base."""
    chosen, candidate = BY_NAME[method], experiment.chosen(method)
    if isinstance(chosen, Fitted):
        updates = experiment.fitted(chosen, candidate, SEED)
    else:
        updates = experiment.closed_form(candidate["pipeline"], SEED)
    return one_for_all(experiment.tasks, updates, rank=rank)


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
            numbers += numbers_of(updates)
            right = shares(hits(exam, updates, group))
            scores += [right[task] / own[task] for task in group]
            merged |= dict.fromkeys(group, updates)
        tried[scale] = (float(np.mean(scores)), Kept(merged, numbers))
    return max(tried.values(), key=lambda pair: pair[0])[1]


def routed(
    experiment: Experiment, *, rank: int | None = None, frozen: bool = True
) -> Kept:
    """Routed cores whose gates, or cores too, the adapters teach."""
    learning, tasks = experiment.learning, experiment.tasks
    batches = shuffled_batches(learning.taught, size=BATCH, seed=SEED)
    return routed_cores(
        *(tasks, experiment.stacks, learning.losses["distillation"], batches),
        params=learning.suite.base.params,
        rank=rank,
        frozen=frozen,
        rate=RATE,
        steps=STEPS,
    )


WAYS = (
    Way("TSV-M, in the weights", "", partial(one_merge, "TSV-M")),
    Way("TSV-M, rank 16", "", partial(one_merge, "TSV-M", rank=16)),
    Way("TARA-B taught, in the weights", "", partial(one_merge, "TARA-B, taught")),
    Way("TARA-B taught, rank 16", "", partial(one_merge, "TARA-B, taught", rank=16)),
    Way("2 groups, TSV-M, rank 16", "the group", partial(group_merges, 2)),
    Way("4 groups, TSV-M, rank 16", "the group", partial(group_merges, 4)),
    *(
        Way(f"adapters, rank {r}", "the task", of_adapters(truncated, rank=r))
        for r in (1, 2, 4)
    ),
    *(
        Way(f"cores, width {r}", "the task", of_adapters(compressed, rank=r))
        for r in (16, 32, 48)
    ),
    Way(
        "half of the components, width 32",
        "the task",
        of_adapters(compressed, count=half, rank=32),
    ),
    Way("half of the components", "the task", of_adapters(compressed, count=half)),
    Way(
        "all components but one",
        "the task",
        of_adapters(compressed, count=all_but_one),
    ),
    Way("routed cores, width 16", "", partial(routed, rank=16)),
    Way("routed and learned, width 16", "", partial(routed, rank=16, frozen=False)),
    Way("routed cores, width 32", "", partial(routed, rank=32)),
    Way("routed and learned, width 32", "", partial(routed, rank=32, frozen=False)),
    Way("routed cores, all directions", "", routed),
    Way("all adapters", "the task", of_adapters(all_adapters)),
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
    if not only:
        inputs = experiment.suite.tasks[0].load("validation").first(TIMED_BATCH).inputs
        add_times(records, experiment.suite.base, inputs, experiment.stacks)
    (folder / "memory.md").write_text(tables(records), encoding="utf-8")
    draw(records, folder / "memory.png")


if __name__ == "__main__":
    typer.run(main)
