"""Compares merges on the tasks of an experiment.

    python -m experiments.run CONFIG

CONFIG is the name of a file in ``experiments/configs``, which says what it needs.

Every method tries the same number of candidates on validation; the best one is measured
on test, with several seeds where anything is random, which choose between candidates
that one cannot tell apart. A candidate that learns does so from three quarters of the
validation inputs and is measured on the rest; the one that is chosen learns from all of
them. Each result is appended to ``results/merging.jsonl`` of the experiment as it
comes, and a run that was cut off goes on where it stopped. With ``--choices`` nothing
is chosen: what another comparison took to test is measured here. ``python -m
experiments.report`` makes tables and plots of it.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxmerge as jm
from experiments.choosing import best_candidate, known_choice, last_choice
from experiments.evaluation import hits, make_exams, own_hits, shares
from experiments.fits import Fits
from experiments.learning import Learning
from experiments.methods import (
    BY_NAME,
    ITERIS_INPUTS,
    ClosedForm,
    Fitted,
    Method,
    candidates,
    is_random,
    merged,
    rescaled,
)
from experiments.records import Records, packed
from experiments.settings import Settings
from experiments.suite import HELD_BACK, SHOWN, batches
from experiments.unlabeled import input_statistics, some_inputs
from jaxmerge.io import load_peft
from jaxmerge.runtime import start_jax
from jaxmerge.spec import Pipeline
from jaxmerge.tasks import model_sample

HERE = Path(__file__).parent
CONFIGS = sorted(path.stem for path in (HERE / "configs").glob("[a-z]*.py"))
GUIDE = "Task arithmetic"  # whose best scale begins the fits by entropy


class Experiment:
    """One experiment: data, adapters, and the results so far."""

    def __init__(self, name: str, settings: Settings, results: Path, work: Path):
        self.name, self.settings, self.work = name, settings, work
        self.records = Records(results / "merging.jsonl")
        self.suite = settings.load()
        self.tasks = tuple(task.name for task in self.suite.tasks)
        folders = [task.adapter for task in self.suite.tasks]
        self.adapters = load_peft(folders, heads="keep")
        self.stacks = self.adapters.stacks
        self.rounds, self.stats = cache(self._rounds), cache(self._stats)
        most = settings.validation
        sizes = {"validation": most, HELD_BACK: most, "test": settings.test}
        self.exams = make_exams(self.suite, sizes, settings.batch)
        self.learning = Learning(self.suite, settings, self.adapters)
        self.fits = self._fits(self.learning, work)
        shown = Learning(self.suite, settings, self.adapters, part=SHOWN)
        self.choosing = self._fits(shown, work / SHOWN)

    def _fits(self, learning: Learning, work: Path) -> Fits:
        stats = partial(self.stats_of, part=learning.part)
        return Fits(learning, self.records, work, self.start, stats)

    def _stats(self, part: str, rows: int, sample: int) -> Any:
        """Of some inputs of every task with its own adapter."""
        inputs = some_inputs(self.suite, part=part, rows=rows, sample=sample)
        given = {"size": self.settings.batch, "adapters": self.adapters}
        found = input_statistics(self.suite, inputs, self.stacks, **given)
        return jm.stack_moments(list(found.values()))

    def _rounds(
        self, pipeline: Pipeline, part: str, rows: int, sample: int
    ) -> dict[str, jm.Update]:
        inputs = some_inputs(self.suite, part=part, rows=rows, sample=sample).values()
        found = [list(batches(self.suite, x, ITERIS_INPUTS)) for x in inputs]
        sample = model_sample(self.suite.base, found, list(self.stacks))
        return pipeline.run(self.stacks, sample=sample)

    def closed_form(
        self,
        pipeline: str,
        seed: int,
        *,
        part: str = "validation",
        rows: int | None = None,
        sample: int = 0,
    ) -> dict[str, jm.Update]:
        """A merge of the adapters, with whatever else the pipeline needs.

        Args:
          seed: where it draws at random.
          part: whose inputs are shown, where the merge needs any.
          rows: inputs of each task; by default 64 for IterIS, and as many as candidates
            are measured on for the others.
          sample: which of its inputs; 0 for the first ones.
        """
        parsed = jm.parse(pipeline)
        if parsed.model:
            count = rows or ITERIS_INPUTS
            return rescaled(parsed, lambda once: self.rounds(once, part, count, sample))
        stats = None
        if parsed.statistics:
            stats = self.stats(part, rows or self.settings.validation, sample)
        return merged(self.stacks, pipeline, seed, stats)

    def measure_references(self) -> None:
        """The base, and every adapter alone on its own task."""
        for part, exam in self.exams.items():
            for kind in ("base", "own"):
                if self.records.find(kind=kind, part=part) is None:
                    own = kind == "own"
                    right = own_hits(exam, self.stacks) if own else hits(exam, {})
                    self._add({"kind": kind, "part": part}, right)

    def _add(self, identity: dict[str, Any], right: Any, **more: Any) -> dict[str, Any]:
        """A row with accuracies, and on test with the single answers."""
        if identity["part"] == "test":
            more["hits"] = packed(right)
        return self.records.add(**identity, accuracy=shares(right), **more)

    def normalised(self, accuracy: Mapping[str, float], part: str) -> float:
        """Mean over tasks of accuracy divided by that of the own adapter."""
        own = self.records.find(kind="own", part=part)["accuracy"]
        return float(np.mean([accuracy[task] / own[task] for task in accuracy]))

    def compare(
        self, method: Method, seeds: int, best: dict[str, Any] | None = None
    ) -> None:
        """All candidates on validation unless the best is given, then that on test."""
        best = self.best(method, seeds) if best is None else best
        if best != last_choice(self.records, method.name):
            self.records.add(kind="choice", method=method.name, candidate=best)
        for seed in range(seeds if is_random(method, best) else 1):
            self.measured(method, best, seed, "test")

    def best(self, method: Method, seeds: int = 1) -> dict[str, Any]:
        """The best candidate on validation; what is not measured yet is."""
        tried = candidates(method, self.settings)
        random = any(is_random(method, candidate) for candidate in tried)
        score = partial(self._score, method)
        return best_candidate(tried, score, seeds=seeds if random else 1)

    def _score(self, method: Method, candidate: dict[str, Any], seeds: int) -> float:
        """Mean over the first seeds on validation, in parts of the own adapters."""
        part = "validation" if isinstance(method, ClosedForm) else HELD_BACK
        rows = [self.measured(method, candidate, n, part) for n in range(seeds)]
        return float(np.mean([self.normalised(x["accuracy"], part) for x in rows]))

    def chosen(self, name: str) -> dict[str, Any]:
        """The candidate of a method that the comparison took to test."""
        return known_choice(self.records, name)

    def measured(
        self, method: Method, candidate: dict[str, Any], seed: int, part: str
    ) -> dict[str, Any]:
        """The row of a merge, which is made and measured unless it is there."""
        identity = {
            "kind": "merge",
            "method": method.name,
            "candidate": candidate,
            "seed": seed,
            "part": part,
        }
        row = self.records.find(**identity)
        if row is None:
            started = time.perf_counter()
            if isinstance(method, ClosedForm):
                updates = self.closed_form(candidate["pipeline"], seed)
            else:
                fits = self.choosing if part == HELD_BACK else self.fits
                updates = fits.merge(method, candidate, seed)
            jax.block_until_ready(updates)
            seconds = time.perf_counter() - started
            right = hits(self.exams[part], updates)
            row = self._add(identity, right, seconds=seconds)
            score = self.normalised(row["accuracy"], part)
            told = f"{part:10} {method.name:24} {candidate} seed {seed}"
            print(f"{told}: {score:.4f}", flush=True)
        return row

    def stats_of(self, method: Fitted, part: str = "validation") -> Any:
        """Statistics of the inputs of a part if the method needs them."""
        if not jm.parse(method.pipeline).statistics:
            return None
        return self.stats(part, self.settings.validation, 0)

    def start(self, method: Fitted) -> float:
        """The scale of all coefficients at which a fit begins; found once."""
        if method.loss == "entropy":
            return jm.parse(self.best(BY_NAME[GUIDE])["pipeline"]).scale
        identity = {"kind": "start", "pipeline": method.pipeline}
        known = self.records.find(**identity)
        if known is None:
            recipe = method.recipe({"rate": 1.0, "steps": 1})
            found = self.learning.search(recipe, self.stats_of(method))
            known = self.records.add(**identity, scale=found)
        return known["scale"]


def open_experiment(
    name: str, folder: Path | None = None, *, logit_scale: float | None = None
) -> Experiment:
    """The experiment of a config, with its results so far.

    Args:
      name: of a file in ``experiments/configs``.
      folder: for ``results`` and ``work``; ``experiments/<name>`` unless given.
      logit_scale: in the place of that of the config.

    Raises:
      ValueError: no config of that name, or something that it needs is missing.
    """
    if name not in CONFIGS:
        raise ValueError(f"{name!r} is not one of {', '.join(CONFIGS)}")
    folder = HERE / name if folder is None else folder
    settings = import_module(f"experiments.configs.{name}").get_config()
    if logit_scale is not None:
        settings = replace(settings, logit_scale=logit_scale)
    return Experiment(name, settings, folder / "results", folder / "work")


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")],
    only: Annotated[list[str] | None, typer.Option(help="a method; repeat")] = None,
    seeds: Annotated[int, typer.Option(help="of methods that draw at random")] = 3,
    out: Annotated[Path | None, typer.Option(help="folder for the results")] = None,
    choices: Annotated[
        Path | None, typer.Option(help="a comparison's folder, to choose as it did")
    ] = None,
    logit_scale: Annotated[
        float | None, typer.Option(help="multiplies logits; give another --out")
    ] = None,
) -> None:
    """Runs one experiment, or what is left of it."""
    start_jax()
    if logit_scale is not None and out is None:
        raise typer.BadParameter("--logit-scale needs --out, a folder of its own")
    unknown = sorted(set(only or ()) - set(BY_NAME))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(BY_NAME)}")
    methods, given = only or list(BY_NAME), {}
    if choices is not None:
        made = Records(choices / "results" / "merging.jsonl")
        given = {method: known_choice(made, method) for method in methods}
    experiment = open_experiment(name, out, logit_scale=logit_scale)
    experiment.measure_references()
    for method in methods:
        experiment.compare(BY_NAME[method], seeds, given.get(method))


if __name__ == "__main__":
    typer.run(main)
