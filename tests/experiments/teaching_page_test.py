"""The tables of the page on teaching are those that the commands wrote."""

import pytest
from documented import DOCS
from tables_of_pages import EXPERIMENTS, means, table

PAGE = DOCS / "teaching.md"
TABLES = (
    "digits8/results/adapter_seeds.md",
    "digits8/results/curve.md",
    "digits8/results/options.md",
    "nli6/results/adapter_seeds.md",
    "nli6/results/inputs.md",
    "vision8/results/inputs.md",
    "vision8/third/results/adapter_seeds.md",
)
LOSSES = {
    "its own adapters teach every task": "TARA-B, taught",
    "information maximisation": "TARA-B, information",
    "entropy, the best of 8": "TARA-B, entropy",
    "entropy as published": "TARA-B, as published",
    "task arithmetic": "Task arithmetic",
    "no adapter": "Base, no adapter",
    "one LoRA taught": "One LoRA, taught",
    "one LoRA on labels": "One LoRA, labels",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_page_is_as_it_was_written(name):
    made = (EXPERIMENTS / name).read_text(encoding="utf-8")
    assert made in PAGE.read_text(encoding="utf-8")


def test_so_are_the_analyses():
    file = EXPERIMENTS / "digits8" / "results" / "analyses.md"
    _, *sections = file.read_text(encoding="utf-8").split("## ")
    assert len(sections) == 5
    page = PAGE.read_text(encoding="utf-8")
    for section in sections:
        _, made = section.split("\n\n", 1)
        assert made.strip() in page


def test_and_the_three_trainings_of_images():
    shown = table(PAGE.read_text(encoding="utf-8"), "| mean | first training |")
    folders = ("vision8/first", "vision8", "vision8/third")
    for name, column in zip(folders, list(shown["RegMean"])[1:], strict=True):
        known = means(name)
        for merge, row in shown.items():
            if merge != "own adapters, mean accuracy":
                assert row[column] == known[merge]


def test_and_other_losses():
    shown = table(PAGE.read_text(encoding="utf-8"), "| what TARA-B learns from |")
    rows = {said.lstrip("*"): row for said, row in shown.items()}
    labels = "One LoRA, labels"
    columns = {
        "digits": means("digits8"),
        "sentences": means("nli6"),
        "images": means("vision8") | {labels: means("vision8/third")[labels]},
    }
    for begin, method in LOSSES.items():
        (row,) = (row for said, row in rows.items() if said.startswith(begin))
        for column, known in columns.items():  # what was not measured is empty
            assert row[column].replace("**", "") == known.get(method, ""), method
