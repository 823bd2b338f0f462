"""Gain over memory: what lies between one merged adapter and all four.

    python -m experiments.domains4.memory

Needs what ``python -m experiments.domains4.run`` leaves: the merges are those that it
chose. Each way of keeping the adapters is a line of ``results/memory.jsonl``, written
as it is measured; ``memory.md`` and ``memory.png`` show all of them. About 2 minutes of
one CPU core for each way, and a quarter of an hour for one whose gates are learned.
"""

import time
from functools import partial
from typing import Annotated, Any

import jax
import typer

from experiments.domains4.data import QUERY_VALUE
from experiments.domains4.methods import BY_NAME
from experiments.domains4.run import Comparison
from experiments.domains4.train import report
from experiments.keeping import (
    Kept,
    Way,
    add_times,
    all_adapters,
    compressed,
    half,
    of_adapters,
    one_for_all,
    routed_cores,
    truncated,
)
from experiments.records import Records
from experiments.report_memory import draw, tables
from jaxmerge.runtime import start_jax
from jaxmerge.tasks import load_unlabeled

STEPS, BATCH, RATE, SEED = 30, 2, 0.03, 0
TIMED = 8  # texts
BEST = "TARA-B on RegMean, taught"


def one_merge(method: str, comparison: Comparison, *, rank: int | None = None) -> Kept:
    """The merge that the comparison chose, as an adapter of a rank, or in the base."""
    updates, _ = comparison.merged(BY_NAME[method], comparison.chosen(method))
    return one_for_all(comparison.tasks, updates, rank=rank)


def nothing(comparison: Comparison) -> Kept:
    """No adapter at all."""
    return one_for_all(comparison.tasks, {})


def routed(comparison: Comparison, *, rank: int, frozen: bool) -> Kept:
    """Routed cores whose gates, or cores too, the adapters teach."""
    losses, batches = comparison.problem(
        "distillation", "validation", batch=BATCH, seed=SEED
    )
    return routed_cores(
        *(comparison.tasks, comparison.stacks, losses, batches),
        params=comparison.base.params,
        rank=rank,
        frozen=frozen,
        rate=RATE,
        steps=STEPS,
        report=lambda done: report(f"{done.step} of {STEPS} steps"),
    )


WAYS = (
    Way("base", "", nothing, {"kind": "base"}),
    Way("all adapters", "the domain", of_adapters(all_adapters), {"kind": "own"}),
    *(
        Way(
            f"{method}, in the weights",
            "",
            partial(one_merge, method),
            {"method": method},
        )
        for method in ("TSV-M", "RegMean", BEST)
    ),
    *(
        Way(f"{method}, rank 16", "", partial(one_merge, method, rank=16))
        for method in ("TSV-M", "RegMean", BEST)
    ),
    *(
        Way(f"adapters, rank {r}", "the domain", of_adapters(truncated, rank=r))
        for r in (1, 2, 4)
    ),
    *(
        Way(f"cores, width {r}", "the domain", of_adapters(compressed, rank=r))
        for r in (16, 32)
    ),
    Way("half of the components", "the domain", of_adapters(compressed, count=half)),
    Way("routed and learned, width 32", "", partial(routed, rank=32, frozen=False)),
    Way("routed cores, width 32", "", partial(routed, rank=32, frozen=True)),
)


def measure(way: Way, comparison: Comparison) -> dict[str, Any]:
    """Gains of the texts of test, numbers that are stored, and seconds to make it."""
    started = time.perf_counter()
    kept = way.keep(comparison)
    jax.block_until_ready(kept.of_task)
    seconds = time.perf_counter() - started
    row: dict[str, Any] = {"part": "test", **way.known}
    if way.known:
        if "method" in row:
            row["candidate"] = comparison.chosen(row["method"])
        row = comparison.records.all(**row)[0]
    else:
        assess, found = comparison.assess["test"], kept.of_task.items()
        row["nats"] = {d: assess(d, updates).nats for d, updates in found}
    gains = comparison.gains(row)
    return {
        "told": way.told,
        "numbers": kept.numbers,
        "gains": {domain: x.round(4).tolist() for domain, x in gains.items()},
        "seconds": seconds,
    }


def main(
    only: Annotated[list[str] | None, typer.Option(help="a way; repeat")] = None,
) -> None:
    """Measures what is missing, and writes table and plot."""
    start_jax()
    comparison = Comparison(QUERY_VALUE)
    folder = comparison.place.results
    records = Records(folder / "memory.jsonl")
    for way in WAYS:
        if records.find(way=way.name) is None and (not only or way.name in only):
            records.add(way=way.name, **measure(way, comparison))
            report(way.name)
    if not only:
        place, base, first = comparison.place, comparison.base, comparison.tasks[:1]
        texts = load_unlabeled(place.texts("test"), first, base).inputs[first[0]]
        some = jax.tree.map(lambda x: x[:TIMED], texts)
        add_times(records, base, some, comparison.stacks)
    (folder / "memory.md").write_text(tables(records), encoding="utf-8")
    draw(records, folder / "memory.png", what="gain over the base on test")


if __name__ == "__main__":
    typer.run(main)
