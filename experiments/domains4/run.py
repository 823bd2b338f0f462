"""Compares merges of the four adapters by the share of their gain that is kept.

    python -m experiments.domains4.run

Needs what `experiments.domains4.train` makes, and about 5 hours on one CPU core. Each
candidate of a method is measured on validation texts and the best one on test texts.
Learned merges, RegMean, SSR-Merge and IterIS see the validation texts, the longer fit
the training texts: completions are inputs of the model there, and targets of nothing
but One LoRA with completions. Each result is appended to ``results/merging.jsonl`` as
it comes, and a run that was stopped goes on where it was, a merge that learns in the
middle of its steps; ``merging.md`` and ``merging.png`` show all of it.
"""

import time
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

import jaxmerge as jm
from experiments.domains4.data import LINEAR, QUERY_VALUE, Place
from experiments.domains4.methods import BY_NAME, METHODS, SEEDS, Candidate, Method
from experiments.domains4.problem import Problem, learning_problem
from experiments.domains4.report import write_report
from experiments.domains4.results import Results
from experiments.domains4.train import BATCH, report
from experiments.lora import scaled
from experiments.methods import rescaled
from experiments.one_lora import load_factors, save_factors, train_one_lora
from jaxmerge.diagnostics.likelihood import Likelihoods, likelihoods
from jaxmerge.io import load_peft, open_statistics
from jaxmerge.runtime import start_jax
from jaxmerge.tasks import load_base, load_unlabeled
from jaxmerge.tasks.sample import read_sample

PARTS = ("validation", "test")
LIMIT = 200  # texts of a domain that a merge learns from
FIRST_SEED = 0
FIT = ("unit", "rate", "steps")  # of a candidate, where they are not as usual
REPORT = 10  # steps of One LoRA between two lines of progress


class Comparison(Results):
    """The adapters of one place, and the results so far."""

    def __init__(self, place: Place):
        super().__init__(place.results / "merging.jsonl")
        self.place = place
        self.adapters = load_peft(place.adapters)
        self.tasks, self.stacks = place.domains, self.adapters.stacks
        self.base = load_base(place.base, "causal")
        self.rounds = cache(self._rounds)
        self.assess = {
            part: likelihoods(
                self.base,
                load_unlabeled(place.texts(part), place.domains, self.base),
                batch=BATCH,
            )
            for part in PARTS
        }

    @cached_property
    def stats(self) -> dict[str, jm.Moments]:
        """Of the inputs of every adapter's layers on the validation texts."""
        opened = open_statistics(self.stats_folder).of(self.place.domains)
        return opened.load(self.adapters.stacks)

    @cached_property
    def stats_folder(self) -> Path:
        """Where they are; they are collected once."""
        folder = self.place.work / "stats"
        if not folder.is_dir():
            jm.collect(
                self.place.adapters,
                base=self.place.base,
                data=self.place.texts("validation"),
                out=folder,
                batch=BATCH,
            )
        return folder

    def measure_reference(self, kind: str, part: str) -> None:
        """Adds the row of the base, or of every adapter alone, if it is not there."""
        if self.records.find(kind=kind, part=part) is None:
            found = {}
            for index, domain in enumerate(self.place.domains):
                own = jm.task_updates(self.adapters.stacks, index)
                updates = own if kind == "own" else {}
                found[domain] = self.assess[part](domain, updates)
            tokens = {domain: x.tokens.tolist() for domain, x in found.items()}
            self.records.add(kind=kind, part=part, nats=_nats(found), tokens=tokens)
            report(f"{part:10} {kind}")

    def compare(self, method: Method, seeds: int) -> None:
        """All candidates on validation, then the best one on test, with some seeds."""
        for candidate in method.candidates:
            self.measured(method, candidate, "validation")
        for seed in range(min(method.seeds, seeds)):
            self.measured(method, self.chosen(method.name), "test", seed)

    def measured(
        self, method: Method, candidate: Candidate, part: str, seed: int = FIRST_SEED
    ) -> dict[str, Any]:
        """The row of a candidate, measured if it is not there yet."""
        identity = {
            "kind": "merge",
            "method": method.name,
            "candidate": candidate,
            "seed": seed,
            "part": part,
        }
        row = self.records.find(**identity)
        if row is None:
            updates, seconds = self.merged(method, candidate, seed)
            found = {d: self.assess[part](d, updates) for d in self.place.domains}
            row = self.records.add(**identity, nats=_nats(found), seconds=seconds)
            kept = 100 * self.kept(row)
            report(f"{part:10} {method.name:24} {candidate}: {kept:.1f} %")
        return row

    def merged(
        self, method: Method, candidate: Candidate, seed: int = FIRST_SEED
    ) -> tuple[Mapping[str, jm.Update], float]:
        """The updates of a candidate, and the seconds that making them took."""
        began = time.perf_counter()
        if "lora" in candidate:
            updates = self.one_lora(method, candidate, seed)
        elif jm.parse(candidate["pipeline"]).learned:
            updates = self.learned(method, candidate, seed)
        else:
            updates = self.closed_form(candidate["pipeline"])
        jax.block_until_ready(updates)
        return updates, time.perf_counter() - began

    def closed_form(self, text: str) -> Mapping[str, jm.Update]:
        """A merge of the adapters, with whatever else the pipeline needs."""
        pipeline = jm.parse(text)
        if pipeline.model:
            return rescaled(pipeline, self.rounds)
        stats = self.stats if pipeline.statistics else None
        return pipeline.run(self.stacks, stats=stats)

    def _rounds(self, pipeline: jm.Pipeline) -> Mapping[str, jm.Update]:
        """Of a merge that goes through the model with the validation texts."""
        folder = self.place.texts("validation")
        sample = read_sample(self.adapters, self.place.base, folder, batch=BATCH)
        return pipeline.run(self.stacks, sample=sample.of(self.adapters))

    def learned(
        self, method: Method, candidate: Candidate, seed: int
    ) -> Mapping[str, jm.Update]:
        """A merge that is taught; it is kept as a folder."""
        named = [*candidate.values(), *([seed] if seed else [])]
        name = "_".join(str(value).replace("|", "_") for value in named)
        out = self.place.work / "merges" / name
        if not out.is_dir():
            pipeline = jm.parse(candidate["pipeline"])
            jm.learn(
                self.place.adapters,
                pipeline,
                base=self.place.base,
                data=self.place.texts(candidate["texts"]),
                stats=self.stats_folder if pipeline.statistics else None,
                out=out,
                limit=LIMIT,
                batch=method.batch,
                seed=seed,
                **{name: candidate[name] for name in FIT if name in candidate},
            )
        return jm.task_updates(load_peft([out]).stacks, 0)

    def one_lora(
        self, method: Method, candidate: Candidate, seed: int
    ) -> Mapping[str, jm.Update]:
        """One adapter of the shape of the others, of all domains; it is kept."""
        named = [*candidate.values(), seed]
        path = self.place.work / "one_lora" / f"{'_'.join(map(str, named))}.npz"
        if not path.is_file():
            losses, batches = self.problem(
                candidate["lora"], candidate["texts"], batch=method.batch, seed=seed
            )
            factors = train_one_lora(
                *(losses, batches, self.place.lora),
                params=self.base.params,
                rate=candidate["rate"],
                steps=candidate["steps"],
                seed=seed,
                report=lambda done, _: report(f"{path.stem}: step {done}"),
                report_every=REPORT,
            )
            save_factors(path, factors)
        return scaled(load_factors(path), self.place.lora)

    def problem(self, loss: str, part: str, *, batch: int, seed: int) -> Problem:
        """Losses of all domains and batches of their texts, see `learning_problem`."""
        texts = load_unlabeled(
            self.place.texts(part), self.tasks, self.base, limit=LIMIT
        )
        how = {"batch": batch, "seed": seed}
        return learning_problem(loss, self.base, self.adapters, texts, **how)


def run(place: Place, methods: Sequence[Method], *, seeds: int = SEEDS) -> str:
    """What is left of the comparison, and its table."""
    comparison = Comparison(place)
    for part in PARTS:
        for kind in ("base", "own"):
            comparison.measure_reference(kind, part)
    for method in methods:
        comparison.compare(method, seeds)
    return write_report(comparison, place)


def _nats(found: Mapping[str, Likelihoods]) -> dict[str, list[float]]:
    """Of every text, as a row holds them."""
    return {domain: x.nats.round(4).tolist() for domain, x in found.items()}


def main(
    only: Annotated[list[str] | None, typer.Option(help="a method; repeat")] = None,
    linear: Annotated[
        bool, typer.Option("--linear", help="adapters of all linear layers")
    ] = False,
    seeds: Annotated[int, typer.Option(help="of a fit at most")] = SEEDS,
) -> None:
    """Runs the comparison, or what is left of it."""
    start_jax()
    unknown = sorted(set(only or ()) - set(BY_NAME))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(BY_NAME)}")
    methods = [BY_NAME[name] for name in only] if only else METHODS
    report(run(LINEAR if linear else QUERY_VALUE, methods, seeds=seeds))


if __name__ == "__main__":
    typer.run(main)
