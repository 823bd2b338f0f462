"""Every entry of the golden set is tested, or named here with the reason."""

import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import golden
import pytest
from documented import DOCS

OUTSIDE = {
    "tara.FreeMerge": "filters in the frequency domain: not a method of this library",
}


@pytest.fixture(scope="module")
def entries():
    if not golden.every_entry():
        pytest.skip(golden.MISSING)
    for path in Path(__file__).parent.glob("*_test.py"):
        import_module(path.stem)
    return golden.every_entry()


def test_every_entry_is_tested_or_outside(entries):
    tested = {entry.id for entry in entries if entry.id in golden.TESTED}
    outside = {entry.id for entry in entries if entry.family in OUTSIDE}
    assert len({entry.id for entry in entries}) == len(entries)
    assert tested | outside == {entry.id for entry in entries}
    assert not tested & outside
    assert set(golden.TESTED) == tested


def test_the_table_of_what_is_outside_is_exact(entries):
    tested = {entry.family for entry in entries if entry.id in golden.TESTED}
    assert {entry.family for entry in entries} - tested == set(OUTSIDE)


def test_counts_of_the_manifest(entries):
    """The reader loses nothing: as many entries of each status as the set says."""
    names = {"raises": "error"}
    found = Counter(names.get(entry.status, entry.status) for entry in entries)
    assert found == golden.manifest()["counts"]
    assert {entry.family for entry in entries} <= set(golden.manifest()["families"])


def test_the_table_of_deviations_names_tests_that_exist():
    page = (DOCS / "deviations.md").read_text()
    named = re.findall(r"`(\w+)_test::(\w+)`", page)
    rows = re.findall(r"^\| (?!Method|Input|-)", page, re.M)
    assert len(named) >= len(rows) > 0
    for family, test in named:
        assert hasattr(import_module(f"oracle_{family}_test"), test), test
