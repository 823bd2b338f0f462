"""Every entry of the golden set is tested, or named here with the reason."""

import re
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import golden
import oracle
import pytest
from documented import DOCS
from reference import ROOT

OUTSIDE = {
    "tara.FreeMerge": "filters in the frequency domain: not a method of this library",
}


TESTS = Path(__file__).parents[1]


def load(path: Path) -> ModuleType:
    """A file of tests as a module, the one that pytest has imported if it has."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def entries():
    if not golden.every_entry():
        pytest.skip(golden.MISSING)
    for path in Path(__file__).parent.glob("*_test.py"):
        load(path)
    return golden.every_entry()


def test_every_entry_is_tested_or_outside(entries):
    tested = {entry.id for entry in entries if entry.id in oracle.TESTED}
    outside = {entry.id for entry in entries if entry.family in OUTSIDE}
    assert len({entry.id for entry in entries}) == len(entries)
    assert tested | outside == {entry.id for entry in entries}
    assert not tested & outside
    assert set(oracle.TESTED) == tested


def test_the_table_of_what_is_outside_is_exact(entries):
    tested = {entry.family for entry in entries if entry.id in oracle.TESTED}
    assert {entry.family for entry in entries} - tested == set(OUTSIDE)


def test_the_quick_entries_cover_codes_cases_and_precisions(entries):
    """What `make test` leaves out asks no code, hyper-parameter or case of its own."""
    tested = [e for e in entries if e.id in oracle.TESTED and e.case.name != "h_real"]
    quick = [entry for entry in tested if entry.id in oracle.QUICK]

    def asked(some):
        return {
            (entry.family, name, str(value))
            for entry in some
            for name, value in entry.facts["hparams"].items()
        } | {(entry.family, entry.status) for entry in some}

    assert asked(quick) == asked(tested)
    cases = Counter(entry.case.name for entry in quick)
    assert set(cases) == {entry.case.name for entry in tested}
    assert min(cases.values()) >= 10
    assert any(len(entry.dtypes) > 1 for entry in quick)


def test_counts_of_the_manifest(entries):
    """The reader loses nothing: as many entries of each status as the set says."""
    names = {"raises": "error"}
    found = Counter(names.get(entry.status, entry.status) for entry in entries)
    assert found == golden.manifest()["counts"]
    assert {entry.family for entry in entries} <= set(golden.manifest()["families"])


def test_the_table_of_deviations_names_tests_that_exist():
    page = (DOCS / "deviations.md").read_text()
    named = re.findall(r"`([\w/]+_test)::(\w+)`", page)
    rows = re.findall(r"^\| (?!Method|Input|-)", page, re.M)
    assert len(named) >= len(rows) > 0
    for file, test in named:
        assert hasattr(load(TESTS / f"{file}.py"), test), (file, test)
