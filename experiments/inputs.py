"""How many unlabeled inputs a merge needs: the curve from 16 of each task to all.

    python -m experiments.inputs nli6
    python -m experiments.inputs vision8

TARA-B taught by the adapters, RegMean and IterIS, each as `experiments.run` chose it,
from the same first inputs of each task. What that command measured already, from the
inputs that it shows, is taken from there. Each result is appended to ``inputs.jsonl``
beside the comparison's as it comes, and a run that was cut off goes on where it
stopped; ``inputs.md`` is the table.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import typer

import jaxmerge as jm
from experiments.choosing import last_choice, rows_on_test
from experiments.evaluation import hits, shares
from experiments.learning import Learning
from experiments.methods import BY_NAME, ITERIS_INPUTS
from experiments.records import Records, packed
from experiments.run import CONFIGS, Experiment, open_experiment
from experiments.tables import markdown_table, mean_and_spread
from jaxmerge.runtime import start_jax

TAUGHT, REGMEAN, ITERIS = "TARA-B, taught", "RegMean", "IterIS"

Merge = Callable[[Experiment, str, int | None, int], dict[str, jm.Update]]


class Shown(NamedTuple):
    """The inputs of each task that a merge is made from."""

    part: str
    rows: int | None  # the first so many; None for all of the part

    def title(self) -> str:
        """
        >>> Shown("validation", 16).title(), Shown("train", None).title()
        ('16 of validation', 'all of train')
        """
        return f"{self.rows or 'all'} of {self.part}"


COUNTS = (*(Shown("validation", n) for n in (16, 64, 256, None)), Shown("train", None))


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
        text, shown = experiment.chosen(name)["pipeline"], {"part": part, "rows": rows}
        return experiment.closed_form(text, seed, **shown, sample=seed)

    return merge


class Curve(NamedTuple):
    """How one method merges, from which inputs.

    Attributes:
      merge: gives the updates.
      counts: the inputs.
      compared: what the comparison showed it.
      sampled: a seed is one of the sample, the first inputs with 0, and not one of the
        batches.
    """

    merge: Merge
    counts: tuple[Shown, ...]
    compared: Shown
    sampled: bool = True

    def needs(self, shown: Shown, seed: int) -> bool:
        """Whether the comparison does not have it, nor another seed gives the same."""
        if shown == self.compared:
            return self.sampled and seed > 0 and shown.rows is not None
        return True


CURVES = {
    TAUGHT: Curve(taught, COUNTS, Shown("validation", None), sampled=False),
    REGMEAN: Curve(closed_form(REGMEAN), COUNTS[:4], Shown("validation", None)),
    ITERIS: Curve(closed_form(ITERIS), COUNTS[:3], Shown("validation", ITERIS_INPUTS)),
}


def identity_of(experiment: Experiment, method: str, shown: Shown) -> dict[str, Any]:
    """What a row is of, seed aside."""
    chosen = experiment.chosen(method)
    return {"method": method, "candidate": chosen, **shown._asdict()}


def missing(
    experiment: Experiment, records: Records, seeds: int, methods: Sequence[str]
) -> Iterator[tuple[Merge, dict[str, Any]]]:
    """What is neither measured yet nor in the comparison, and how it merges."""
    for method in methods:
        curve = CURVES[method]
        for shown in curve.counts:
            of_all = identity_of(experiment, method, shown)
            for seed in range(seeds):
                identity = of_all | {"seed": seed}
                if curve.needs(shown, seed) and records.find(**identity) is None:
                    yield curve.merge, identity


def measure(
    experiment: Experiment, records: Records, seeds: int, methods: Sequence[str]
) -> None:
    """Adds a row for everything that has none yet."""
    for merge, identity in missing(experiment, records, seeds, methods):
        given = {name: identity[name] for name in ("part", "rows", "seed")}
        updates = jax.block_until_ready(merge(experiment, **given))
        right = hits(experiment.exams["test"], updates)
        row = records.add(**identity, accuracy=shares(right), hits=packed(right))
        score = experiment.normalised(row["accuracy"], "test")
        print(f"{identity}: {score:.4f}", flush=True)


def table(records: Records, experiment: Experiment) -> str:
    """A row for each method, a column for each number of inputs."""
    rows = []
    for method, curve in CURVES.items():
        if last_choice(experiment.records, method) is None:
            continue
        cells = []
        for shown in COUNTS:
            found = records.all(**identity_of(experiment, method, shown))
            if shown == curve.compared:
                found = [*rows_on_test(experiment.records, method), *found]
            scores = [experiment.normalised(row["accuracy"], "test") for row in found]
            cells.append(mean_and_spread([100 * score for score in scores]))
        rows.append([method, *cells])
    return markdown_table(["method", *(f"{x.title()}>" for x in COUNTS)], rows)


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")],
    seeds: Annotated[int, typer.Option(help="of batches, or of the sample")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="a method; repeat")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the comparison")] = None,
) -> None:
    """Measures what is left of the curve."""
    start_jax()
    experiment = open_experiment(name, out)
    records = Records(experiment.records.path.with_name("inputs.jsonl"))
    measure(experiment, records, seeds, only or tuple(CURVES))
    text = table(records, experiment)
    records.path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
