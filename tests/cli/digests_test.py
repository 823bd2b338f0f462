"""Digests of what commands read: taken once, before the files are loaded."""

import shutil

import pytest
from cli_samples import document, refuse, succeed
from learn_samples import ask
from statistics_samples import collect, folders, merge

from jaxmerge.io.files import sha256
from jaxmerge.tasks import bases, record, unlabeled

pytest_plugins = ["statistics_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")
READ = ("config.json", "model.safetensors", "tokenizer.json", "cars.jsonl")


@pytest.fixture
def events(monkeypatch):
    """Files in the order in which they were digested and loaded."""
    seen = []

    def watch(module, name, kind):
        function = getattr(module, name)

        def watched(path, *args, **options):
            seen.append((kind, path))
            return function(path, *args, **options)

        monkeypatch.setattr(module, name, watched)

    watch(record, "sha256", "digest")
    watch(bases, "load_bert", "load")
    watch(unlabeled, "read_texts", "load")
    return seen


def check_that_digests_came_first_and_once(events, files):
    kinds = [kind for kind, _ in events]
    assert kinds.count("load") == 4
    assert kinds.index("load") == kinds.count("digest")
    paths = [path for kind, path in events if kind == "digest"]
    assert len(paths) == len(set(paths))
    known = {name: d for role in files.values() for name, d in role["sha256"].items()}
    assert len(known) == len(paths)
    for path in paths:
        assert sha256(path) in known.values()
    assert known.keys() >= {*READ}


def test_merge(place, events):
    given = {"base": place / "base", "data": place / "data", "stats": None, "limit": 4}
    found = document(*merge(place, "iteris(iterations=1)", **given))
    check_that_digests_came_first_and_once(events, found["recipe"]["files"])
    events.clear()
    assert document("verify", place / "out")["identical"]
    assert "digest" not in [kind for kind, _ in events]  # those of the record hold


@pytest.mark.thorough
def test_learn(place, events):
    inputs = [*folders(place), "--base", place / "base", "--data", place / "data"]
    found = document(*ask(inputs, place / "out", steps=1, batch=4))
    check_that_digests_came_first_and_once(events, found["recipe"]["files"])


def test_collect(place, events):
    found = document(*collect(place, "more", *folders(place), limit=2))
    check_that_digests_came_first_and_once(events, found["measured"]["files"])


@pytest.mark.thorough
def test_check_records_none(place, events):
    succeed(
        *("check", *folders(place), "--base", place / "base"),
        *("--data", place / "data", "--limit", 2),
    )
    assert "digest" not in [kind for kind, _ in events]


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_file_that_is_missing_is_named(name, place):
    (place / "base" / name).unlink()
    given = {"base": place / "base", "data": place / "data", "stats": None}
    inputs = [*folders(place), "--base", place / "base", "--data", place / "data"]
    for arguments in (
        merge(place, "iteris", **given),
        ask(inputs, place / "out"),
        collect(place, "more", *folders(place)),
    ):
        assert name in refuse(*arguments)
    shutil.rmtree(place / "base")
    assert "base: no config.json" in refuse(*merge(place, "iteris", **given))
