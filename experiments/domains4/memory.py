"""Gain over memory: what lies between one merged adapter and all four.

    python -m experiments.domains4.memory

Needs what ``python -m experiments.domains4.run`` leaves: the merges are those that it
chose. Each way of keeping the adapters is a line of ``results/memory.jsonl``, written
as it is measured; ``memory.md`` and ``memory.png`` show all of them. About 2 minutes of
one CPU core for each way, and a quarter of an hour for one whose gates are learned.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax
import typer

import jaxmerge as jm
from experiments.domains4.data import DOMAINS, QUERY_VALUE
from experiments.domains4.methods import BY_NAME
from experiments.domains4.run import LIMIT, Comparison
from experiments.domains4.train import report
from experiments.keeping import (
    Kept,
    all_adapters,
    compressed,
    forward_times,
    half,
    numbers_of,
    one_for_all,
    truncated,
)
from experiments.records import Records
from experiments.report_memory import draw, tables
from jaxmerge.runtime import start_jax
from jaxmerge.tasks import load_unlabeled
from jaxmerge.tasks.next_tokens import counted_tokens

STEPS, BATCH, RATE, SEED = 30, 2, 0.03, 0
TIMED = 8  # texts
READ = 8  # texts in one batch of an adapter that answers
BEST = "TARA-B on RegMean, taught"


class Way(NamedTuple):
    """A way of keeping four adapters.

    Attributes:
      name: in the table.
      told: "the domain" if it must be told that of a text, otherwise "".
      keep: what is kept.
      known: the row of the comparison that measured it already, if any did.
    """

    name: str
    told: str
    keep: Callable[[Comparison], Kept]
    known: Mapping[str, str] = {}


def one_merge(method: str, comparison: Comparison, *, rank: int | None = None) -> Kept:
    """The merge that the comparison chose, as an adapter of a rank, or in the base."""
    updates, _ = comparison.merged(BY_NAME[method], comparison.chosen(method))
    return one_for_all(comparison.place.domains, updates, rank=rank)


def nothing(comparison: Comparison) -> Kept:
    """No adapter at all."""
    return one_for_all(comparison.place.domains, {})


def of_adapters(
    keep: Callable[..., Kept], **options: Any
) -> Callable[[Comparison], Kept]:
    """A way that needs nothing but the adapters."""

    def kept(comparison: Comparison) -> Kept:
        return keep(comparison.place.domains, comparison.adapters.stacks, **options)

    return kept


def routed(comparison: Comparison, *, rank: int, frozen: bool) -> Kept:
    """Routed cores whose gates, or cores too, the adapters teach."""
    base, adapters = comparison.base, comparison.adapters
    tasks, stacks, vocabulary = adapters.names, adapters.stacks, base.vocabulary
    assert vocabulary is not None
    folder = comparison.place.texts("validation")
    texts = load_unlabeled(folder, tasks, base, limit=LIMIT)
    pieces = [
        {task: jax.tree.map(lambda x, at=at: x[at : at + READ], inputs)}
        for task, inputs in texts.inputs.items()
        for at in range(0, texts.count(task), READ)
    ]
    answers = jm.teacher_answers(base.apply, tasks, stacks, pieces, params=base.params)
    known = {task: jm.Taught(x, answers[task]) for task, x in texts.inputs.items()}
    losses = jm.token_distillation(base.apply, vocabulary, mask=counted_tokens)
    batches = texts._replace(inputs=known).batches(size=BATCH, seed=SEED)
    fitted = jm.fit(
        *(jm.core_router(rank=rank, frozen=frozen), tasks, stacks, losses, batches),
        optax.adam(optax.cosine_decay_schedule(RATE, STEPS)),
        steps=STEPS,
        params=base.params,
        report=lambda done: report(f"{done.step} of {STEPS} steps"),
    )
    numbers = numbers_of(fitted.updates)
    return Kept(dict.fromkeys(tasks, fitted.updates), numbers)


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
    if way.known:
        identity: dict[str, Any] = {"part": "test", **way.known}
        if "method" in way.known:
            identity["candidate"] = comparison.chosen(way.known["method"])
        nats = comparison.records.find(**identity)["nats"]
    else:
        assess, found = comparison.assess["test"], kept.of_task.items()
        nats = {domain: assess(domain, updates).nats for domain, updates in found}
    base = comparison.reference("base", "test")["nats"]
    gains = {d: np.subtract(base[d], x).round(4).tolist() for d, x in nats.items()}
    return {
        "told": way.told,
        "numbers": kept.numbers,
        "gains": gains,
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
    if not records.all(kind="time") and not only:
        texts = load_unlabeled(comparison.place.texts("test"), DOMAINS, comparison.base)
        some = jax.tree.map(lambda x: x[:TIMED], texts.inputs[DOMAINS[0]])
        given = (comparison.base, some, comparison.adapters.stacks)
        for name, seconds in forward_times(*given).items():
            records.add(kind="time", runs=name, seconds=seconds, inputs=TIMED)
    (folder / "memory.md").write_text(tables(records), encoding="utf-8")
    draw(records, folder / "memory.png", what="gain over the base on test")


if __name__ == "__main__":
    typer.run(main)
