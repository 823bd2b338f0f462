"""Tests over entries of the golden set.

`oracle` turns a test into one that runs over entries of the set. Each entry is one
test id, and a test fails if it leaves an array of its entry unread, so that nothing is
skipped silently. `oracles/coverage_test` asserts that every entry has a test. `make
test` asks a selection of the entries that covers every official code, each of its
hyper-parameters and each case.
"""

import functools
import zlib
from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest
from golden import MISSING, Entry, every_entry
from tiers import THOROUGH, covering

TESTED: dict[str, str] = {}  # id of an entry -> the test that claims it
QUICK: set[str] = set()  # ids of the entries that `make test` asks


def _facts(entry: Entry) -> set:
    """What an entry asks: its code with each hyper-parameter, status and precision."""
    asked = {*((name, str(value)) for name, value in entry.facts["hparams"].items())}
    asked |= {("status", entry.status), ("single precision", len(entry.dtypes) > 1)}
    return {(entry.family, each) for each in asked}


def _quick(name: str, entries: list[Entry]) -> set[str]:
    """Ids of those entries of a test that `make test` asks: all facts, few cases.

    The cases take turns by the name of the test: over all tests each of them is asked
    often, and within a test most entries share the shapes of one. Real adapters take
    long, and small cases ask the same.
    """
    small = [entry for entry in entries if entry.case.name != "h_real"]
    cases = sorted({entry.case.name for entry in small})
    first = zlib.crc32(name.encode()) % len(cases) if cases else 0
    in_turn = cases[first:] + cases[:first]
    small.sort(key=lambda entry: in_turn.index(entry.case.name))
    return {entry.id for entry in covering(small, _facts)}


def oracle(*patterns: str, where: Callable[[Entry], bool] | None = None):
    """Runs a test over the entries whose names match a pattern, one id for each.

    ``where`` chooses among them.
    """

    def decorate(test):
        chosen = [
            entry
            for entry in every_entry()
            if any(fnmatchcase(entry.name, p) for p in patterns)
            and (where is None or where(entry))
        ]
        for entry in chosen:
            claimed = TESTED.setdefault(entry.id, test.__qualname__)
            assert claimed == test.__qualname__, f"{entry.id} is tested by {claimed}"
        assert chosen or not every_entry(), f"no entry matches {patterns}"
        missing = pytest.param(None, marks=pytest.mark.skip(MISSING), id="no set")
        quick = _quick(test.__qualname__, chosen)
        QUICK.update(quick)
        ids = [
            pytest.param(
                entry, id=entry.id, marks=() if entry.id in quick else THOROUGH
            )
            for entry in chosen
        ] or [missing]

        @pytest.mark.parametrize("entry", ids)
        @functools.wraps(test)
        def run(entry):
            test(entry)
            assert not entry.unread, f"not compared: {sorted(entry.unread)}"

        return run

    return decorate
