"""Table and plot of the comparison, from the rows that it wrote.

    python -m experiments.domains4.report

Reads ``results/merging.jsonl`` and writes ``merging.md`` and ``merging.png`` beside it;
with ``--linear`` those of the adapters of all linear layers.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import typer

from experiments.domains4.data import LINEAR, QUERY_VALUE, Place
from experiments.domains4.methods import Candidate
from experiments.domains4.results import Gains, Results
from experiments.intervals import difference
from experiments.report import Line, draw
from experiments.tables import markdown_table

PART = "test"


def write_report(results: Results, place: Place) -> str:
    """Writes both files, and returns the table."""
    own, lines = results.own_gains(PART), read_lines(results)
    text = f"{references(results)}\n{table(lines, own)}"
    path = place.results / "merging.md"
    path.write_text(text, encoding="utf-8")
    base = Line("Base, no adapter", np.zeros(len(own)), 0.0)
    axis = "share of the own adapter's gain that is kept on test, in %"
    draw(path.with_suffix(".png"), [*own], base, lines, axis=axis)
    return text


def read_lines(results: Results) -> list[Line]:
    """Methods on test texts, from best to worst.

    Where a merge was learned with several seeds, its gains are their mean. The answers
    of a line are what it gains.
    """
    own, tested, lines = results.own_gains(PART), results.tested(), []
    for method, rows in tested.items():
        each = 100 * np.array([results.shares(row) for row in rows])
        means, gains = each.mean(1), tuple(results.gains(row) for row in rows)
        best = lines[0].answers if lines else gains
        lines.append(
            Line(
                *(method, each.mean(0), float(means.mean())),
                spread=float(means.std(ddof=1)) if len(rows) > 1 else None,
                seconds=results.seconds(method),
                chosen=_chosen(rows[0]["candidate"]),
                answers=gains,
                behind=difference(gains, best, own),
            )
        )
    return lines


def references(results: Results) -> str:
    """Nats per token of base and adapters on test texts."""
    rows, domains = [], [*results.own_gains(PART)]
    for kind, title in (("base", "base"), ("own", "its own adapter")):
        row = results.reference(kind, PART)
        each = (sum(row["nats"][d]) / sum(row["tokens"][d]) for d in domains)
        rows.append([title, *(f"{value:.3f}" for value in each)])
    return markdown_table(["nats per token", *(f"{d}>" for d in domains)], rows)


def table(lines: Sequence[Line], own: Gains) -> str:
    """The table as Markdown.

    Args:
      lines: of the methods.
      own: what the own adapters gain.
    """
    rows = [
        [
            line.method,
            *shares(line.answers, own),
            ""
            if line.spread is None
            else f"± {line.spread:.1f} of {len(line.answers)}",
            line.behind.shown() if line.behind and line is not lines[0] else "",
            f"`{line.chosen}`",
            f"{line.seconds:.0f}",
        ]
        for line in lines
    ]
    columns = [*own, "mean [95 %]", "over seeds", "from the best [95 %]"]
    head = ["method", *(f"{x}>" for x in columns), "chosen on validation", "s>"]
    return markdown_table(head, rows)


def shares(found: Sequence[Gains], own: Gains) -> Iterator[str]:
    """Of what the own adapters gain, in %, and their mean with its interval.

    Args:
      found: what a merge gains, for each of its seeds.
      own: what the own adapters gain.
    """
    for domain, alone in own.items():
        kept = np.mean([gains[domain].sum() for gains in found])
        yield f"{100 * kept / alone.sum():.1f}"
    nothing = {domain: np.zeros_like(x) for domain, x in own.items()}
    mean = difference(found, [nothing], own)
    yield f"**{mean.value:.1f}** [{mean.low:.1f}, {mean.high:.1f}]"


def _chosen(candidate: Candidate) -> str:
    fit = (
        f"{name} {candidate[name]:g}" for name in ("rate", "steps") if name in candidate
    )
    unit = (f"by {candidate['unit']}s",) if "unit" in candidate else ()
    return ", ".join([candidate.get("pipeline", "Adam"), *unit, *fit])


def main(
    linear: Annotated[
        bool, typer.Option("--linear", help="adapters of all linear layers")
    ] = False,
) -> None:
    """Writes table and plot, and prints the table."""
    place = LINEAR if linear else QUERY_VALUE
    print(write_report(Results(place.results / "merging.jsonl"), place))


if __name__ == "__main__":
    typer.run(main)
