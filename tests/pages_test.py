"""The README and the pages of docs/: names, paths, links, tables and commands."""

import doctest
import re
from pathlib import Path

import jax
import pytest
from documented import BLOCK, DOCS, code_of
from reference import ROOT
from tables_of_pages import rows

import jaxmerge as jm
from jaxmerge.spec import STEPS, method_markdown
from jaxmerge.spec.steps import names_of

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")])
CHANGES = "CHANGELOG.md"  # names what is gone
ADDED = re.compile(r"/(mag_max|module_scale)(_test)?\.py")  # by contributing.md


def names(cell: str) -> list[str]:
    """What stands in backticks, without arguments."""
    return [name.partition("(")[0] for name in re.findall(r"`([^`]+)`", cell)]


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.M)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != CHANGES], ids=lambda page: page.name
)
def test_paths_exist(page):
    path = r"`((?:jaxmerge|tests|experiments|benchmarks|docs)/[\w/.*]+)`"
    for named in re.findall(path, page.read_text()):
        assert ADDED.search(named) or list(ROOT.glob(named.rstrip("/"))), named


def test_the_readme_names_every_step_and_no_other():
    _, *table = rows((ROOT / "README.md").read_text(), "| family |")
    named = [name for _, cell in table for name in names(cell)]
    assert len(named) == len(set(named))
    assert all(hasattr(jm, name) for name in named)
    assert STEPS.keys() <= {*named, "calibrate"}


def test_the_page_of_methods_has_the_table_of_methods():
    page = (DOCS / "methods.md").read_text()
    assert page.endswith(method_markdown())  # of `jaxmerge methods --markdown`
    steps = {kind: names(cell) for kind, cell in rows(page, "| kind of step |")[1:]}
    assert steps == {kind: names_of(kind) for kind in {s.kind for s in STEPS.values()}}
    by_paper = " ".join(cells[1] for cells in rows(page, "| method |")[1:])
    for name in names_of("rule", "rule transform", "merger", "learned merger"):
        if name not in ("elect", "trim"):  # steps of TIES, which has its own page
            assert re.search(rf"\b{name}\b", by_paper), name


def test_the_functions_that_contributing_adds():
    page = code_of("contributing.md")
    for function in (page.mag_max, page.module_scale):
        (test,) = doctest.DocTestFinder().find(function, globs=dict(vars(page)))
        with jax.enable_x64(False):
            assert doctest.DocTestRunner().run(test).failed == 0
        assert test.examples
