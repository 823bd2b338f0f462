"""How far teaching goes: learned merges by steps and by the images they learn from.

    python -m experiments.digits8.curve

Adam at a constant rate of 0.01. Every fit is a line of ``results/curve.jsonl``, written
as it ends; given again, the command does what is missing and writes
``results/curve.md``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import optax
import typer

from experiments.digits8.data import load_splits
from experiments.digits8.demo import SEEDS, Setting, prepare
from experiments.digits8.learning import LEARNED, RATE, LearnedMethod, learn
from experiments.digits8.score import accuracies
from experiments.digits8.tasks import TASKS
from experiments.records import Records
from experiments.tables import markdown_table, mean_and_spread
from jaxmerge.runtime import start_jax

RESULTS = Path(__file__).parent / "results"
PARTS = ("validation", "train")  # images without labels, 200 and 897 of each task
STEPS = (100, 300, 1000)


def measure(
    method: LearnedMethod, setting: Setting, part: str, steps: int, seed: int
) -> dict[str, Any]:
    """Fits on the images of a split; task -> normalised accuracy on test, in %."""
    images = load_splits()[part]
    shown = {name: task.examples(images)[0] for name, task in TASKS.items()}
    stacks, base = setting.adapters.stacks, setting.base
    adam = optax.adam(RATE)  # a constant rate, so that fewer steps are a part of more
    updates = learn(method, stacks, base, shown, seed=seed, steps=steps, optimizer=adam)
    found = accuracies(base.params, updates, [1.0], setting.exams["test"])[0]
    normalised = 100 * found / setting.own["test"]
    return {"tasks": dict(zip(TASKS, normalised.tolist(), strict=True))}


def table(records: Records) -> str:
    """A row for each method and split, a column for each number of steps."""
    rows = []
    for method in LEARNED:
        for part in PARTS:
            cells = [_cell(records, method.name, part, steps) for steps in STEPS]
            if any(cells):
                rows.append([method.name, part, *cells])
    head = ["method", "images", *(f"{steps} steps>" for steps in STEPS)]
    return markdown_table(head, rows)


def _cell(records: Records, method: str, part: str, steps: int) -> str:
    found = records.all(method=method, part=part, steps=steps)
    return mean_and_spread([np.mean(list(row["tasks"].values())) for row in found])


def main() -> None:
    """Fits every method with every number of steps on every split, for all seeds."""
    start_jax()
    records, setting = Records(RESULTS / "curve.jsonl"), prepare()
    for method in LEARNED:
        for steps, part in ((s, p) for s in STEPS for p in PARTS):
            for seed in SEEDS:
                what = {"part": part, "steps": steps, "seed": seed}
                if not records.find(method=method.name, **what):
                    found = measure(method, setting, **what)
                    records.add(method=method.name, **what, **found)
                    typer.echo(f"{method.name} {what}", err=True)
    (RESULTS / "curve.md").write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
