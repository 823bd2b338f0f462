"""How much another training of the adapters changes: chosen merges, on other adapters.

    python -m experiments.adapter_seeds digits8
    python -m experiments.adapter_seeds nli6
    python -m experiments.adapter_seeds vision8

The adapters are trained again with other seeds, on the same base and with the same
heads, and merged as `experiments.run` chose it for the first ones; nothing is chosen
anew. The results of a seed are appended to ``results/adapters_<seed>/merging.jsonl`` as
they come, and a run that was cut off goes on where it stopped;
``results/adapter_seeds.md`` is the table.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from experiments.learning import FIRST_SEED
from experiments.methods import BY_NAME
from experiments.run import CONFIGS, Experiment, open_experiment
from experiments.tables import markdown_table, mean_and_spread
from jaxmerge.runtime import start_jax

METHODS = (
    "Task arithmetic",
    "TSV-M",
    "RegMean",
    "AdaMerging, taught",
    "TARA-A, taught",
    "TARA-B, taught",
)
SEEDS = (1, 2)


def retrained(first: Experiment, seed: int) -> Experiment:
    """The same experiment with adapters of another seed, trained unless they are there.

    Raises:
      ValueError: the experiment does not train its adapters.
    """
    settings = first.settings
    if settings.retrain is None:
        raise ValueError(f"{first.name} does not train its adapters")
    folder = first.work / "adapters" / str(seed)
    settings.retrain(folder, seed)
    other = replace(settings, load=lambda: settings.load().with_adapters_in(folder))
    name = f"adapters_{seed}"
    results = first.records.path.parent / name
    return Experiment(first.name, other, results, first.work / name)


def measure(first: Experiment, again: Experiment) -> None:
    """Every merge on the other adapters, with the options chosen for the first."""
    again.measure_references()
    for name in METHODS:
        again.measured(BY_NAME[name], first.chosen(name), FIRST_SEED, "test")


def table(sets: list[Experiment]) -> str:
    """A row for each merge, a column for each set of adapters."""
    own = []
    for one in sets:
        alone = one.records.find(kind="own", part="test")["accuracy"]
        own.append(100 * np.mean(list(alone.values())))
    cells = [f"{value:.1f}" for value in own]
    rows = [["own adapters, accuracy", *cells, mean_and_spread(own)]]
    for name in METHODS:
        found = [
            one.measured(BY_NAME[name], sets[0].chosen(name), FIRST_SEED, "test")
            for one in sets
        ]
        scores = [
            100 * one.normalised(row["accuracy"], "test")
            for one, row in zip(sets, found, strict=True)
        ]
        cells = [f"{score:.1f}" for score in scores]
        rows.append([name, *cells, f"**{mean_and_spread(scores)}**"])
    columns = ["the first>", *(f"seed {seed}>" for seed in SEEDS)]
    return markdown_table(["", *columns, "mean>"], rows)


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")],
    out: Annotated[Path | None, typer.Option(help="folder of the comparison")] = None,
) -> None:
    """Trains the adapters again and measures what is left."""
    start_jax()
    sets = [open_experiment(name, out)]
    for seed in SEEDS:
        sets.append(retrained(sets[0], seed))
        measure(sets[0], sets[-1])
    path = sets[0].records.path.with_name("adapter_seeds.md")
    path.write_text(table(sets), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
