"""How many unlabeled texts RegMean needs, and what a merge is worth on unseen domains.

    python -m experiments.domains4.inputs

Needs what ``python -m experiments.domains4.run`` leaves. RegMean, as the comparison
chose it, from the first texts of each domain; and merges of three adapters on the texts
of the fourth, which nobody taught them. Each result is a line of
``results/inputs.jsonl``, written as it comes; ``inputs.md`` has both tables. About 20
minutes on one CPU core.
"""

from collections.abc import Mapping

import numpy as np
import typer

import jaxmerge as jm
from experiments.domains4.data import QUERY_VALUE
from experiments.domains4.report import shares
from experiments.domains4.run import Comparison
from experiments.domains4.train import BATCH, report
from experiments.records import Records
from experiments.tables import markdown_table
from jaxmerge.io import load_peft, open_statistics
from jaxmerge.runtime import start_jax

COUNTS = (("validation", 2), ("validation", 8), ("validation", 32), ("train", 200))
UNSEEN = ("Task arithmetic", "TSV-M", "RegMean")
CURVE = "RegMean"


class Inputs:
    """What is left to measure, of one comparison."""

    def __init__(self, comparison: Comparison):
        self.comparison = comparison
        self.records = Records(comparison.place.results / "inputs.jsonl")

    def pipeline(self, method: str) -> jm.Pipeline:
        """The merge that the comparison chose."""
        return jm.parse(self.comparison.chosen(method)["pipeline"])

    def gains(
        self, updates: Mapping[str, jm.Update], domains: tuple[str, ...]
    ) -> dict[str, list[float]]:
        """Nats that each text of test gains over the base."""
        assess = self.comparison.assess["test"]
        nats = {domain: assess(domain, updates).nats for domain in domains}
        found = self.comparison.gains({"part": "test", "nats": nats})
        return {domain: x.round(4).tolist() for domain, x in found.items()}

    def measure_counts(self) -> None:
        """RegMean from the first texts of each domain."""
        place, stacks = self.comparison.place, self.comparison.adapters.stacks
        for part, texts in COUNTS:
            if self.records.find(kind="count", part=part, texts=texts) is None:
                folder = place.work / f"stats-{part}-{texts}"
                if not folder.is_dir():
                    jm.collect(
                        place.adapters,
                        base=place.base,
                        data=place.texts(part),
                        out=folder,
                        limit=texts,
                        batch=BATCH,
                    )
                stats = open_statistics(folder).of(place.domains).load(stacks)
                updates = self.pipeline(CURVE).run(stacks, stats=stats)
                gains = self.gains(updates, place.domains)
                self.records.add(kind="count", part=part, texts=texts, gains=gains)
                report(f"{texts} texts of {part}")

    def measure_unseen(self) -> None:
        """Merges of all adapters but one, on the texts of that one."""
        place = self.comparison.place
        opened = open_statistics(self.comparison.stats_folder)
        for domain in place.domains:
            others = tuple(x for x in place.domains if x != domain)
            stacks = load_peft([place.trained / x for x in others]).stacks
            for method in UNSEEN:
                if self.records.find(kind="unseen", domain=domain, method=method):
                    continue
                pipeline = self.pipeline(method)
                stats = opened.of(others).load(stacks) if pipeline.statistics else None
                gains = self.gains(pipeline.run(stacks, stats=stats), (domain,))
                self.records.add(
                    kind="unseen", domain=domain, method=method, gains=gains
                )
                report(f"{method} without {domain}")

    def tables(self) -> str:
        """The curve, and a row for each method on domains that it was not taught."""
        return f"{self.curve()}\n{self.unseen()}"

    def curve(self) -> str:
        own = self.comparison.own_gains("test")
        rows = []
        for row in self.records.all(kind="count"):
            gains = {d: np.asarray(x) for d, x in row["gains"].items()}
            name = f"{row['texts']} of {row['part']}"
            rows.append([name, *shares([gains], own)])
        head = [f"texts of each domain for {CURVE}", *(f"{d}>" for d in own)]
        return markdown_table([*head, "mean [95 %]"], rows)

    def unseen(self) -> str:
        own = self.comparison.own_gains("test")
        rows = []
        for method in UNSEEN:
            gains = {}
            for row in self.records.all(kind="unseen", method=method):
                gains |= {d: np.asarray(x) for d, x in row["gains"].items()}
            rows.append([f"{method} of the other three", *shares([gains], own)])
        head = ["merge", *(f"{d}>" for d in own), "mean [95 %]"]
        return markdown_table(head, rows)


def main() -> None:
    """Measures what is missing, and writes both tables."""
    start_jax()
    inputs = Inputs(Comparison(QUERY_VALUE))
    inputs.measure_unseen()
    inputs.measure_counts()
    path = inputs.comparison.place.results / "inputs.md"
    path.write_text(inputs.tables(), encoding="utf-8")
    report(inputs.tables())


if __name__ == "__main__":
    typer.run(main)
