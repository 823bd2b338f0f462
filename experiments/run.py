"""Compares merges on the tasks of an experiment.

    python -m experiments.run CONFIG

CONFIG is the name of a file in ``experiments/configs``, which says what it needs.

Every method tries the same number of candidates on validation; the best one is measured
on test, with several seeds where anything is random. Each result is appended to
``experiments/<config>/results/merging.jsonl`` as it comes, and a run that was cut off
goes on where it stopped. ``python -m experiments.report`` makes tables and plots of it.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxmerge as jm
from experiments.evaluation import accuracies, make_exams, own_accuracies
from experiments.methods import (
    INITIALS,
    ITERIS_INPUTS,
    LOOKS,
    METHODS,
    RATES,
    ClosedForm,
    Fitted,
)
from experiments.records import Records
from experiments.settings import Settings
from experiments.suite import batches
from experiments.unlabeled import (
    first_inputs,
    input_statistics,
    unlabeled_batches,
)
from jaxmerge.io import load_peft
from jaxmerge.jobs.learn_recipe import LearnRecipe
from jaxmerge.runtime import start_jax
from jaxmerge.spec import Pipeline
from jaxmerge.stats.moments import Statistics
from jaxmerge.tasks import model_sample

HERE = Path(__file__).parent
CONFIGS = sorted(path.stem for path in (HERE / "configs").glob("[a-z]*.py"))
FIRST_SEED = 0


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
        self.rounds = cache(self._rounds)
        sizes = {"validation": settings.validation, "test": settings.test}
        self.exams = make_exams(self.suite, sizes, settings.batch)

    @cached_property
    def losses(self) -> Any:
        """Entropy of every task through the suite's model."""
        heads = {task.name: task.head for task in self.suite.tasks}
        base, scale = self.suite.base, self.settings.logit_scale
        return jm.entropies(base.apply, base.logits, heads, logit_scale=scale)

    @cached_property
    def anchors(self) -> np.ndarray:
        """Entropy of each task under its own adapter alone, [T]; measured once."""
        known = self.records.find(kind="anchors")
        if known is None:
            source = self.batches(FIRST_SEED)
            some = [next(source) for _ in range(self.settings.anchor_batches)]
            find = partial(jm.single_adapter_losses, self.tasks, self.stacks)
            values = find(self.losses, some, params=self.suite.base.params)
            known = self.records.add(kind="anchors", values=np.asarray(values).tolist())
        return np.asarray(known["values"], np.float32)

    @cached_property
    def stats(self) -> Any:
        """Of the inputs of every task with its own adapter, on validation."""
        inputs = first_inputs(self.suite, rows=self.settings.validation)
        given = {"size": self.settings.batch, "adapters": self.adapters}
        found = input_statistics(self.suite, inputs, self.stacks, **given)
        return jm.stack_moments(list(found.values()))

    def _rounds(self, pipeline: Pipeline) -> dict[str, jm.Update]:
        inputs = first_inputs(self.suite, rows=ITERIS_INPUTS).values()
        found = [list(batches(self.suite, x, ITERIS_INPUTS)) for x in inputs]
        sample = model_sample(self.suite.base, found, list(self.stacks))
        return pipeline.run(self.stacks, sample=sample)

    def closed_form(self, pipeline: str, seed: int) -> dict[str, jm.Update]:
        """A merge of the adapters, with whatever else the pipeline needs."""
        parsed = jm.parse(pipeline)
        if parsed.model:  # the rounds are the same for all scales
            rounds = self.rounds(replace(parsed, calls=parsed.calls[:-1]))
            by = parsed.scale
            return {name: jm.scale(update, by=by) for name, update in rounds.items()}
        stats = self.stats if parsed.statistics else None
        return merged(self.stacks, pipeline, seed, stats)

    def batches(self, seed: int) -> Any:
        size = self.settings.learning_batch
        return unlabeled_batches(self.suite, size=size, seed=seed)

    def measure_references(self) -> None:
        """The base, and every adapter alone on its own task."""
        for part, exam in self.exams.items():
            if self.records.find(kind="base", part=part) is None:
                self.records.add(kind="base", part=part, accuracy=accuracies(exam, {}))
            if self.records.find(kind="own", part=part) is None:
                own = own_accuracies(exam, self.stacks)
                self.records.add(kind="own", part=part, accuracy=own)

    def normalised(self, accuracy: Mapping[str, float], part: str) -> float:
        """Mean over tasks of accuracy divided by that of the own adapter."""
        own = self.records.find(kind="own", part=part)["accuracy"]
        return float(np.mean([accuracy[task] / own[task] for task in accuracy]))

    def compare(self, method: ClosedForm | Fitted, seeds: int) -> None:
        """All candidates on validation, then the best one on test."""
        tried = [
            (self._measured(method, candidate, FIRST_SEED, "validation"), candidate)
            for candidate in candidates(method, self.settings)
        ]
        scores = [self.normalised(row["accuracy"], "validation") for row, _ in tried]
        best = tried[int(np.argmax(scores))][1]
        for seed in range(seeds if _random(method, best) else 1):
            self._measured(method, best, seed, "test")

    def _measured(self, method, candidate, seed, part) -> dict[str, Any]:
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
                updates = self.fitted(method, candidate, seed)
            jax.block_until_ready(updates)
            seconds = time.perf_counter() - started
            accuracy = accuracies(self.exams[part], updates)
            row = self.records.add(**identity, accuracy=accuracy, seconds=seconds)
            score = self.normalised(accuracy, part)
            print(f"{part:10} {method.name:24} {candidate} seed {seed}: {score:.4f}")
        return row

    def fitted(self, method: Fitted, candidate: dict[str, Any], seed: int) -> Any:
        """The merge after some steps of a fit, which leaves phi in the work folder."""
        start = (
            f"{method.name}, initial {candidate['initial']}, rate {candidate['rate']}"
        )
        folder = self.work / f"{start}, seed {seed}".replace(" ", "_")
        path = folder / f"{candidate['steps']}.npz"
        recipe = method.recipe(candidate, seed=seed)
        if not path.is_file():
            identity = {"method": method.name, "candidate": candidate, "seed": seed}
            self._fit(recipe, folder, identity)
        return jm.apply_learned(recipe.learned, dict(np.load(path)))(self.stacks)

    def _fit(self, recipe: LearnRecipe, folder: Path, identity: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)

        def keep(progress: jm.Progress) -> None:
            np.savez(folder / f"{progress.step}.npz", **progress.phis)
            objective = progress.history.objective
            print(
                f"{folder.name}: step {progress.step}, {objective[-1]:.4f}", flush=True
            )

        started = time.perf_counter()
        fitted = jm.fit(
            recipe.learned,
            self.tasks,
            self.stacks,
            self.losses,
            self.batches(recipe.seed),
            recipe.optimizer,
            steps=recipe.steps,
            params=self.suite.base.params,
            scalarise=recipe.scalarise(self.anchors),
            steps_per_call=self.settings.longest_fit // LOOKS // 2,
            checkpoint=folder / "checkpoints",
            report=keep,
        )
        self.records.add(
            kind="fit",
            **identity,
            seconds=time.perf_counter() - started,
            objective=fitted.history.objective.tolist(),
            losses=fitted.history.losses.tolist(),
        )


def merged(
    stacks: Any,
    pipeline: str,
    seed: int,
    stats: Mapping[str, Statistics] | None = None,
) -> dict[str, jm.Update]:
    """A merge in closed form; the seed matters where the pipeline draws at random."""
    parsed = jm.parse(pipeline)
    key = jax.random.key(seed) if parsed.random else None
    return parsed.run(stacks, key=key, stats=stats)


def candidates(method: ClosedForm | Fitted, settings: Settings) -> list[dict[str, Any]]:
    """What is tried on validation; longer fits first, for they leave shorter ones."""
    if isinstance(method, ClosedForm):
        scales = [round(scale * settings.scale_factor, 6) for scale in method.scales]
        pairs = product(method.pipelines, scales)
        return [{"pipeline": f"{text}|scale({scale})"} for text, scale in pairs]
    initials = [round(x * settings.scale_factor, 6) for x in INITIALS]
    steps = [settings.longest_fit * look // LOOKS for look in range(LOOKS, 0, -1)]
    return [
        {"initial": initial, "rate": rate, "steps": n}
        for initial, rate, n in product(initials, RATES, steps)
    ]


def _random(method: ClosedForm | Fitted, candidate: dict[str, Any]) -> bool:
    return isinstance(method, Fitted) or jm.parse(candidate["pipeline"]).random


def open_experiment(name: str, folder: Path | None = None) -> Experiment:
    """The experiment of a config, with its results so far.

    Args:
      name: of a file in ``experiments/configs``.
      folder: for ``results`` and ``work``; ``experiments/<name>`` unless given.

    Raises:
      ValueError: no config of that name, or something that it needs is missing.
    """
    if name not in CONFIGS:
        raise ValueError(f"{name!r} is not one of {', '.join(CONFIGS)}")
    folder = HERE / name if folder is None else folder
    settings = import_module(f"experiments.configs.{name}").get_config()
    return Experiment(name, settings, folder / "results", folder / "work")


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")],
    only: Annotated[list[str] | None, typer.Option(help="a method; repeat")] = None,
    seeds: Annotated[int, typer.Option(help="of methods that draw at random")] = 3,
    out: Annotated[Path | None, typer.Option(help="folder for the results")] = None,
) -> None:
    """Runs one experiment, or what is left of it."""
    start_jax()
    known = {method.name: method for method in METHODS}
    unknown = sorted(set(only or ()) - set(known))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(known)}")
    experiment = open_experiment(name, out)
    experiment.measure_references()
    for method_name in only or known:
        experiment.compare(known[method_name], seeds)


if __name__ == "__main__":
    typer.run(main)
