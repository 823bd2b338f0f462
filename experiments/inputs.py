"""How many unlabeled inputs a merge needs: the curve from 16 of each task to all.

    python -m experiments.inputs nli6
    python -m experiments.inputs vision8

TARA-B taught by the adapters, RegMean and IterIS, each as `experiments.run` chose it,
from the same first inputs of each task. Each result is appended to
``experiments/<name>/results/inputs.jsonl`` as it comes, and a run that was cut off goes
on where it stopped; ``inputs.md`` is the table.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import typer

import jaxmerge as jm
from experiments.evaluation import hits, shares
from experiments.learning import Learning
from experiments.methods import BY_NAME
from experiments.records import Records, packed
from experiments.run import CONFIGS, Experiment, open_experiment
from experiments.tables import markdown_table, mean_and_spread
from jaxmerge.runtime import start_jax

ROWS = (16, 64, 256, None)  # inputs of each task; None for all of the part
TAUGHT, REGMEAN, ITERIS = "TARA-B, taught", "RegMean", "IterIS"
SEEDS = (0, 1, 2)

Merge = Callable[[Experiment, str, int | None, int], dict[str, jm.Update]]


def taught(
    experiment: Experiment, part: str, rows: int | None, seed: int
) -> dict[str, jm.Update]:
    """TARA-B from the first inputs, with rate, steps and start of the comparison."""
    method = BY_NAME[TAUGHT]
    suite, settings = experiment.suite, experiment.settings
    learning = Learning(suite, settings, experiment.adapters, part=part, rows=rows)
    recipe = method.recipe(experiment.chosen(TAUGHT), seed=seed)
    return learning.fit(recipe, experiment.start(method), steps_per_call=25).updates


def closed_form(name: str) -> Merge:
    """RegMean or IterIS from the first inputs, with the options of the comparison."""

    def merge(
        experiment: Experiment, part: str, rows: int | None, seed: int
    ) -> dict[str, jm.Update]:
        text = experiment.chosen(name)["pipeline"]
        return experiment.closed_form(text, seed, part=part, rows=rows)

    return merge


COUNTS = [("validation", rows) for rows in ROWS] + [("train", None)]
PLAN: list[tuple[str, Merge, str, int | None, int]] = [
    *((TAUGHT, taught, *count, seed) for count in COUNTS for seed in SEEDS),
    *((REGMEAN, closed_form(REGMEAN), *count, 0) for count in COUNTS[:-1]),
    *((ITERIS, closed_form(ITERIS), *count, 0) for count in COUNTS[:3]),
]
"""Method, how it merges, part, inputs and seed of everything that is measured."""


def measure(experiment: Experiment, records: Records) -> None:
    """Adds a row for everything that has none yet."""
    for method, merge, part, rows, seed in PLAN:
        identity = {"method": method, "part": part, "rows": rows, "seed": seed}
        if records.find(**identity) is None:
            updates = jax.block_until_ready(merge(experiment, part, rows, seed))
            right = hits(experiment.exams["test"], updates)
            row = records.add(**identity, accuracy=shares(right), hits=packed(right))
            score = experiment.normalised(row["accuracy"], "test")
            print(f"{identity}: {score:.4f}", flush=True)


def table(records: Records, experiment: Experiment) -> str:
    """A row for each method, a column for each number of inputs."""
    rows = []
    for method in (TAUGHT, REGMEAN, ITERIS):
        cells = []
        for part, count in COUNTS:
            found = records.all(method=method, part=part, rows=count)
            means = [
                100 * experiment.normalised(row["accuracy"], "test") for row in found
            ]
            cells.append(mean_and_spread(means))
        rows.append([method, *cells])
    columns = [f"{count or 'all'} of {part}>" for part, count in COUNTS]
    return markdown_table(["method", *columns], rows)


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")],
) -> None:
    """Measures what is left of the curve."""
    start_jax()
    experiment = open_experiment(name)
    records = Records(experiment.records.path.with_name("inputs.jsonl"))
    measure(experiment, records)
    text = table(records, experiment)
    records.path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
