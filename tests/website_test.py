"""The site: pages that are made of the code, and its build without a warning."""

import os
import re
import subprocess
import sys

import pytest
from reference import ROOT

from jaxmerge.spec import STEPS

sys.path.insert(0, str(ROOT / "website"))

import api
import names
import pictures
import step_pages

import jaxmerge as jm


def test_every_step_has_its_line_among_the_choices():
    assert step_pages.choices().keys() == STEPS.keys()


@pytest.mark.parametrize("name", STEPS)
def test_the_page_of_a_step_says_what_the_table_says(name):
    page, step = step_pages.page(name), STEPS[name]
    assert page.startswith(f"# {name}\n")
    assert step.says[1:] in page
    assert step.arxiv in page
    for heading in ("When to use it", "What it costs", "Definition"):
        assert f"\n## {heading}\n" in page
    for argument in step.arguments:
        assert f"| `{argument}` |" in page
    assert "::: jaxmerge." in page


def test_the_reference_has_every_public_name():
    listed = {name for group in names.GROUPS.values() for name in group}
    assert listed == set(jm.__all__)
    page = api.page()
    for name in names.PUBLIC:
        assert f"::: jaxmerge.{name}\n" in page or f"[`{name}`](methods/" in page, name
    for name in names.PACKAGES:
        assert f"::: jaxmerge.{name}." in api.package(name)


def test_a_picture_shows_the_updates_and_their_merge():
    drawn = pictures.picture("concat")
    assert drawn.count("<rect") == 3 * pictures.SIZE**2
    one, two = (jm.task_updates({"x": pictures.adapters()}, t)["x"] for t in (0, 1))
    total = jm.dense(one) + jm.dense(two)
    largest = max(abs(jm.dense(x)).max() for x in (one, two, total))
    colours = re.findall(r'fill="(#\w{6})"', drawn)
    last = pictures.colour(float(total[-1, -1] / largest))
    assert colours[-1] == last


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"- {page.name}$", nav, re.M), page.name


@pytest.mark.thorough
def test_the_site_builds_without_a_warning_and_loads_nothing_from_the_net(tmp_path):
    pytest.importorskip("material", reason="the extra docs has mkdocs-material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(STEPS)
    loaded = re.compile(
        r'<(?:script|img|link|iframe)[^>]*(?:src|href)="?(?:https?:)?//'
    )
    for page in pages:
        assert not loaded.search(page.read_text()), page.name
