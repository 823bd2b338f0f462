"""Compares merges of the four adapters by the share of their gain that is kept.

    python -m experiments.domains4.run

Needs what `experiments.domains4.train` makes, and about 2 hours on one CPU core. Each
candidate of a method is measured on validation texts and the best one on test texts.
Learned merges and RegMean see the validation texts, the longer fit the training texts:
completions are inputs of the model there, never targets. Each result is appended to
``results/merging.jsonl`` as it comes, and a run that was stopped goes on where it was,
a fit in the middle of its steps; ``merging.md`` is the table.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxmerge as jm
from experiments.domains4.data import LINEAR, QUERY_VALUE, Place
from experiments.domains4.methods import BY_NAME, METHODS, Candidate, Method
from experiments.domains4.train import BATCH, report
from experiments.intervals import difference
from experiments.records import Records
from experiments.tables import markdown_table
from jaxmerge.diagnostics.likelihood import Likelihoods, likelihoods
from jaxmerge.io import load_peft, open_statistics
from jaxmerge.runtime import start_jax
from jaxmerge.tasks import load_base, load_unlabeled

PARTS = ("validation", "test")
LIMIT = 200  # texts of a domain that a merge learns from
Gains = dict[str, np.ndarray]  # domain -> nats that each text gains over the base, [N]


class Comparison:
    """The adapters of one place, and the results so far."""

    def __init__(self, place: Place):
        self.place = place
        self.records = Records(place.results / "merging.jsonl")
        self.adapters = load_peft(place.adapters)
        self.tasks, self.stacks = place.domains, self.adapters.stacks
        self.base = load_base(place.base, "causal")
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

    def reference(self, kind: str, part: str) -> dict[str, Any]:
        """A row with nats and tokens of the base, or of every adapter alone."""
        row = self.records.find(kind=kind, part=part)
        if row is None:
            found = {}
            for index, domain in enumerate(self.place.domains):
                own = jm.task_updates(self.adapters.stacks, index)
                updates = own if kind == "own" else {}
                found[domain] = self.assess[part](domain, updates)
            tokens = {domain: x.tokens.tolist() for domain, x in found.items()}
            row = self.records.add(
                kind=kind, part=part, nats=_nats(found), tokens=tokens
            )
            report(f"{part:10} {kind}")
        return row

    def gains(self, row: Mapping[str, Any]) -> Gains:
        """What a row gains over the base."""
        base = self.reference("base", row["part"])["nats"]
        return {d: np.subtract(base[d], nats) for d, nats in row["nats"].items()}

    def own_gains(self, part: str) -> Gains:
        """What every adapter alone gains over the base, on texts of its own."""
        return self.gains(self.reference("own", part))

    def kept(self, row: Mapping[str, Any]) -> float:
        """Share of the adapters' gain that a merge keeps, mean over domains."""
        own, found = self.own_gains(row["part"]), self.gains(row)
        return float(np.mean([found[d].sum() / own[d].sum() for d in own]))

    def compare(self, method: Method) -> None:
        """All candidates on validation, then the best one on test."""
        for candidate in method.candidates:
            self.measured(method, candidate, "validation")
        self.measured(method, self.chosen(method.name), "test")

    def chosen(self, method: str) -> Candidate:
        """The best candidate of those that were measured on validation so far."""
        rows = self.records.all(kind="merge", method=method, part="validation")
        return max(rows, key=self.kept)["candidate"]

    def measured(
        self, method: Method, candidate: Candidate, part: str
    ) -> dict[str, Any]:
        """The row of a candidate, measured if it is not there yet."""
        identity = {
            "kind": "merge",
            "method": method.name,
            "candidate": candidate,
            "part": part,
        }
        row = self.records.find(**identity)
        if row is None:
            updates, seconds = self.merged(method, candidate)
            found = {d: self.assess[part](d, updates) for d in self.place.domains}
            row = self.records.add(**identity, nats=_nats(found), seconds=seconds)
            kept = 100 * self.kept(row)
            report(f"{part:10} {method.name:24} {candidate}: {kept:.1f} %")
        return row

    def merged(
        self, method: Method, candidate: Candidate
    ) -> tuple[Mapping[str, jm.Update], float]:
        """The updates of a candidate, and the seconds that making them took."""
        pipeline = jm.parse(candidate["pipeline"])
        if not pipeline.learned:
            began = time.perf_counter()
            stats = self.stats if pipeline.statistics else None
            updates = pipeline.run(self.adapters.stacks, stats=stats)
            jax.block_until_ready(updates)
            return updates, time.perf_counter() - began
        name = "_".join(str(value).replace("|", "_") for value in candidate.values())
        out, began = self.place.work / "merges" / name, time.perf_counter()
        if not out.is_dir():
            jm.learn(
                self.place.adapters,
                candidate["pipeline"],
                base=self.place.base,
                data=self.place.texts(candidate["texts"]),
                stats=self.stats_folder if pipeline.statistics else None,
                out=out,
                limit=LIMIT,
                batch=method.batch,
                rate=candidate["rate"],
                steps=candidate["steps"],
            )
        updates = jm.task_updates(load_peft([out]).stacks, 0)
        return updates, time.perf_counter() - began

    def seconds(self, method: str) -> float:
        """Of the longest merge or fit, compilation included."""
        rows = self.records.all(kind="merge", method=method)
        return max(row["seconds"] for row in rows)

    def table(self) -> str:
        """Methods on test texts, from best to worst."""
        rows = [
            row
            for row in self.records.all(kind="merge", part="test")
            if row["candidate"] == self.chosen(row["method"])
        ]
        rows.sort(key=self.kept, reverse=True)
        own, lines = self.own_gains("test"), []
        for row in rows:
            found = self.gains(row)
            behind = difference([found], [self.gains(rows[0])], own)
            lines.append(
                [
                    row["method"],
                    *shares(found, own),
                    _interval(behind) if row is not rows[0] else "",
                    f"`{_chosen(row['candidate'])}`",
                    f"{self.seconds(row['method']):.0f}",
                ]
            )
        columns = [*self.place.domains, "mean [95 %]", "from the best [95 %]"]
        head = ["method", *(f"{x}>" for x in columns), "chosen on validation", "s>"]
        return f"{self.references()}\n{markdown_table(head, lines)}"

    def references(self) -> str:
        """Nats per token of base and adapters on test texts."""
        rows = []
        for kind, title in (("base", "base"), ("own", "its own adapter")):
            row = self.reference(kind, "test")
            each = (
                sum(row["nats"][d]) / sum(row["tokens"][d]) for d in self.place.domains
            )
            rows.append([title, *(f"{value:.3f}" for value in each)])
        head = ["nats per token", *(f"{d}>" for d in self.place.domains)]
        return markdown_table(head, rows)


def shares(gains: Gains, own: Gains) -> Iterator[str]:
    """Of what the own adapters gain, in %, and their mean with its interval."""
    for domain, alone in own.items():
        yield f"{100 * gains[domain].sum() / alone.sum():.1f}"
    nothing = {domain: np.zeros_like(x) for domain, x in own.items()}
    mean = difference([gains], [nothing], own)
    yield f"**{mean.value:.1f}** [{mean.low:.1f}, {mean.high:.1f}]"


def _nats(found: Mapping[str, Likelihoods]) -> dict[str, list[float]]:
    """Of every text, as a row holds them."""
    return {domain: x.nats.round(4).tolist() for domain, x in found.items()}


def _interval(found: Any) -> str:
    return f"{found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def _chosen(candidate: Candidate) -> str:
    fit = (
        f"{name} {candidate[name]:g}" for name in ("rate", "steps") if name in candidate
    )
    return ", ".join([candidate["pipeline"], *fit])


def run(place: Place, methods: Sequence[Method]) -> str:
    """What is left of the comparison, and its table."""
    comparison = Comparison(place)
    for part in PARTS:
        for kind in ("base", "own"):
            comparison.reference(kind, part)
    for method in methods:
        comparison.compare(method)
    text = comparison.table()
    (place.results / "merging.md").write_text(text, encoding="utf-8")
    return text


def main(
    only: Annotated[list[str] | None, typer.Option(help="a method; repeat")] = None,
    linear: Annotated[
        bool, typer.Option("--linear", help="adapters of all linear layers")
    ] = False,
) -> None:
    """Runs the comparison, or what is left of it."""
    start_jax()
    unknown = sorted(set(only or ()) - set(BY_NAME))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(BY_NAME)}")
    methods = [BY_NAME[name] for name in only] if only else METHODS
    report(run(LINEAR if linear else QUERY_VALUE, methods))


if __name__ == "__main__":
    typer.run(main)
