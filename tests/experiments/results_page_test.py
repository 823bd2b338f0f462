"""Tables of the pages on results and memory, and README's first, are of the runs."""

import pytest
from documented import DOCS
from tables_of_pages import EXPERIMENTS, means, measured, table

from experiments.methods import METHODS, ClosedForm
from jaxmerge.spec import parse

PAGE = DOCS / "results.md"
SETS = ("digits8", "nli6", "vision8", "domains4")  # the columns of README's table
DIGITS = {
    "One LoRA of rank 16, all factors trained on labels of the 200 images": (
        "One LoRA, labels"
    ),
    "One LoRA of rank 16, all factors taught by the adapters": "One LoRA, taught",
    "TARA-B, information maximisation": "TARA-B, information",
}
DETAILS = ("chosen on validation", "s")


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("nli6/results", DETAILS),
        ("vision8/results", DETAILS),
        ("domains4/results", DETAILS),
        ("domains4/results/linear", ("over seeds", *DETAILS)),
    ],
)
def test_a_table_of_the_page_is_as_it_was_measured(name, left_out):
    page = PAGE.read_text(encoding="utf-8").splitlines()
    for row in measured(name).values():
        kept = [value for column, value in row.items() if column not in left_out]
        assert f"| {' | '.join(kept)} |" in page


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("results", "digits8/results/tune.md"),
        ("results", "domains4/results/inputs.md"),
        ("results", "nli6/results/osrm.md"),
        ("results", "vision8/results/osrm.md"),
        ("memory", "domains4/results/memory.md"),
        ("memory", "nli6/results/memory.md"),
        ("memory", "vision8/results/memory.md"),
    ],
)
def test_so_is_one_with_all_columns(page, name):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    made = (EXPERIMENTS / name).read_text(encoding="utf-8")
    assert all(part.strip() in text for part in made.split("\n\n"))


def test_so_are_merges_and_references_on_the_digits():
    shown = table(PAGE.read_text(encoding="utf-8"), "| merge | mean |")
    assert shown.keys() > DIGITS.keys()
    known = means("digits8")
    for merge, row in shown.items():
        assert row["mean"] == known[DIGITS.get(merge, merge)]


def test_the_first_table_of_readme_is_of_these():
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    shown = table(text, "| merge | what it needs |")
    alone = {
        method.name
        for method in METHODS
        if isinstance(method, ClosedForm)
        and not any(parse(p).statistics or parse(p).model for p in method.pipelines)
    }
    for name, column in zip(SETS, list(shown["RegMean"])[2:], strict=True):
        known = {method: mean.split()[0] for method, mean in means(name).items()}
        for merge, row in shown.items():
            value = row[column].replace("**", "")
            method = merge.replace("**", "").replace(" by the adapters", "")
            if method == "best of the adapters alone":
                best = max(alone & known.keys(), key=lambda m: float(known[m]))
                said = f"{known[best]} ({best[0].lower() + best[1:]})"
                assert value.lower() == said.lower()
            elif method == "no adapter":
                assert value == known.get("Base, no adapter", "0")
            else:
                assert value.split(" ")[0] == known[method], (method, name)
