"""The tutorial: its commands run in order, and its figures are what they print."""

import re
import shlex
import sys
from importlib import import_module

import pytest
from cli_samples import document, succeed
from documented import DOCS, blocks_of
from reference import ROOT

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("as_a_user")

PAGE = DOCS / "tutorial.md"
LINES = [
    line.removeprefix("$ ")
    for kind, block in blocks_of(PAGE)
    if kind == "console"
    for line in block.splitlines()
]
ROUNDING = 2.0  # points, by which a fit may end elsewhere on another machine


@pytest.fixture
def clone(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(line):
    """The arguments of a command of jaxmerge."""
    return shlex.split(line)[1:]


def run(line, monkeypatch, *more):
    """Runs a line; gives the document that an evaluation prints."""
    if line.startswith("python -m "):
        monkeypatch.setattr(sys, "argv", [line])
        return import_module(line.removeprefix("python -m ")).main()
    assert line.startswith("jaxmerge ")
    asked = document if line.startswith("jaxmerge evaluate") else succeed
    return asked(*words(line), *more)


def figures(name):
    """A row of the table of accuracies."""
    (cells,) = re.findall(rf"^\| `?{name}`? \| (.*) \|$", PAGE.read_text(), re.M)
    return [float(cell) for cell in cells.split(" | ")]


@pytest.mark.thorough
def test_the_commands_run_in_short(clone, monkeypatch):
    """All that need no fit, on some of the images; of the others the options exist."""
    for line in LINES:
        if line.startswith("jaxmerge evaluate plain"):
            found = run(line, monkeypatch, "--limit", "20")
            assert [task["rows"] for task in found["tasks"].values()] == [20, 20]
        elif line.startswith("jaxmerge") and "taught" in line:
            succeed(*words(line), "--help")
        else:
            run(line, monkeypatch)
    with pytest.raises(AssertionError, match="No such option"):
        succeed("learn", "--stepps", "100", "--help")


@pytest.mark.thorough
def test_the_figures_are_what_the_commands_print(clone, monkeypatch):
    found = {}
    for line in LINES:
        printed = run(line, monkeypatch)
        if "jaxmerge evaluate" in line:
            found[words(line)[1]] = printed
    rows = {"plain": ("plain", "merged"), "taught": ("taught", "merged")}
    rows |= {"base": ("plain", "base"), "own adapter": ("plain", "own")}
    for row, (merge, what) in rows.items():
        tasks = found[merge]["tasks"].values()
        measured = [100 * task[what] for task in tasks]
        assert measured == pytest.approx(figures(row)[:2], abs=ROUNDING), row
    for merge, printed in found.items():
        share = 100 * printed["mean_normalised"]["value"]
        assert share == pytest.approx(figures(merge)[2], abs=ROUNDING)
