"""What the options of a taught fit are worth: rates, schedules, averages and batches.

    python -m experiments.digits8.options

TARA-B on the 200 validation images of each task, 300 steps unless the line says
otherwise, 3 seeds of the batches. Every fit is a line of ``results/options.jsonl``,
written as it ends; given again, the command does what is missing and writes
``results/options.md``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import optax
import typer

from experiments.digits8.data import load_splits
from experiments.digits8.demo import SEEDS, prepare
from experiments.digits8.learning import BATCH, LEARNED, RATE, learn
from experiments.digits8.score import accuracies
from experiments.digits8.tasks import TASKS
from experiments.records import Records
from experiments.tables import markdown_table, mean_and_spread
from jaxmerge.learning.optimizers import decay_to_start, tail_average
from jaxmerge.runtime import start_jax

RESULTS = Path(__file__).parent / "results"
STEPS = 300
METHOD = LEARNED[0]  # TARA-B, taught

Make = Callable[[int], optax.GradientTransformation]  # from the number of steps


@dataclass(frozen=True)
class Option:
    """A taught fit that differs from the usual one in what is named."""

    name: str
    optimizer: Make
    steps: int = STEPS
    batch: int = BATCH
    temperature: float = 1.0
    part: str = "validation"


def adam(rate: float) -> Make:
    return lambda _: optax.adam(rate)


def cosine(rate: float) -> Make:
    return lambda steps: optax.adam(optax.cosine_decay_schedule(rate, steps))


def averaged(rate: float) -> Make:
    return lambda steps: tail_average(
        optax.adam(rate), first=steps // 2 + 1, steps=steps
    )


def drawn_back(rate: float, weight: float) -> Make:
    return lambda _: optax.chain(
        optax.scale_by_adam(),
        decay_to_start(weight),
        optax.scale_by_learning_rate(rate),
    )


def sharpness_aware(rate: float, radius: float) -> Make:
    """Two steps for one: to the worst point within the radius, and from there."""
    return lambda _: optax.contrib.sam(
        optax.adam(rate),
        optax.chain(optax.contrib.normalize(), optax.sgd(radius)),
        sync_period=2,
    )


OPTIONS = (
    Option("Adam, rate 0.01", adam(RATE)),
    Option("rate 0.02", adam(0.02)),
    *(
        Option(f"cosine decay from {rate}", cosine(rate))
        for rate in (0.02, 0.04, 0.08, 0.16)
    ),
    Option("mean of the last half, rate 0.02", averaged(0.02)),
    Option("decay 0.1 to 0, rate 0.01", lambda _: optax.adamw(RATE, weight_decay=0.1)),
    Option("decay 0.1 to the start, rate 0.01", drawn_back(RATE, 0.1)),
    Option(
        "SAM, radius 0.05, rate 0.01 (600 gradients)",
        sharpness_aware(RATE, 0.05),
        steps=2 * STEPS,
    ),
    Option("temperature 2, rate 0.01", adam(RATE), temperature=2.0),
    *(
        Option(
            f"training images, {steps:,} steps of 32, cosine decay from {rate}",
            cosine(rate),
            steps=steps,
            batch=32,
            part="train",
        )
        for steps, rate in ((1000, 0.04), (1000, 0.08), (2000, 0.04))
    ),
)


def table(records: Records) -> str:
    """A row for each option: accuracy on test in % of the own adapters."""
    rows = []
    for option in OPTIONS:
        found = [row["mean"] for row in records.all(option=option.name)]
        if found:
            rows.append([option.name, mean_and_spread(found)])
    return markdown_table(["option", "mean>"], rows)


def main() -> None:
    """Fits with every option and seed that is not measured yet."""
    start_jax()
    records, setting = Records(RESULTS / "options.jsonl"), prepare()
    splits = load_splits()
    for seed, option in product(SEEDS, OPTIONS):
        what = {"option": option.name, "seed": seed}
        if records.find(**what):
            continue
        images = splits[option.part]
        updates = learn(
            *(METHOD, setting.adapters.stacks, setting.base),
            {name: task.examples(images)[0] for name, task in TASKS.items()},
            seed=seed,
            steps=option.steps,
            optimizer=option.optimizer(option.steps),
            batch=option.batch,
            temperature=option.temperature,
        )
        exam = setting.exams["test"]
        found = accuracies(setting.base.params, updates, [1.0], exam)[0]
        mean = float(np.mean(100 * found / setting.own["test"]))
        records.add(**what, mean=mean)
        typer.echo(f"{what}: {mean:.1f}", err=True)
    (RESULTS / "options.md").write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
