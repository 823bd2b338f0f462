"""Every step of a replacement, ended by an error, Ctrl-C, a kill or a power cut."""

import contextlib
import errno
import os
import shutil
import warnings

import pytest
from cli_samples import everything
from faults import Killed, PowerCuts, at, lay_out, mend_quietly, steps_of, watched

from jaxmerge import disk
from jaxmerge.io.staging import staged_file, staged_folder


def write(out):
    with staged_folder(out, force=True) as folder:
        (folder / "jaxmerge.json").write_text("{}")
        (folder / "README.md").write_text("new")


def write_file(out):
    with staged_file(out) as path:
        path.write_text("new")


def old_folder(place):
    place.mkdir()
    (place / "out").mkdir()
    (place / "out" / "jaxmerge.json").write_text("{}")
    (place / "out" / "README.md").write_text("old")
    return place / "out"


def old_file(place):
    place.mkdir()
    (place / "out").write_text("old")
    return place / "out"


def no_folder(place):
    place.mkdir()
    return place / "deep" / "out"


@pytest.fixture(params=["exchange", "two renames"])
def by(request, monkeypatch):
    """With the call that exchanges names, and without it."""
    if request.param == "two renames":
        monkeypatch.setattr(disk, "_renameat2", lambda *_: False)


WORKS = {
    "a folder anew": (no_folder, write),
    "a folder again": (old_folder, write),
    "a file": (old_file, write_file),
}
works = pytest.mark.parametrize(("make", "work"), WORKS.values(), ids=WORKS)


def content(out):
    if out.is_dir():
        return everything(out)["README.md"].decode()
    return out.read_text() if out.exists() else None


def mended(out):
    """What is left after the next run has mended; nothing hidden may be."""
    mend_quietly(out)
    if out.parent.is_dir():
        assert set(os.listdir(out.parent)) <= {"out"}
    return content(out)


@pytest.mark.usefixtures("by")
@works
@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (KeyboardInterrupt(), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (Killed(), True),
    ],
    ids=["Ctrl-C", "disk full", "kill"],
)
def test_interrupted_at_every_step(make, work, error, dead, tmp_path):
    first = make(tmp_path / "count")
    before = content(first)
    count = steps_of(tmp_path, lambda: work(first))
    assert count >= 5
    assert content(first) == "new"
    for n in range(count):
        out = make(tmp_path / str(n))
        with warnings.catch_warnings(), contextlib.suppress(BaseException):
            warnings.simplefilter("ignore", disk.Mended)
            with watched(tmp_path, at(n, error, dead=dead)):
                work(out)
        if not dead:
            assert set(os.listdir(tmp_path / str(n))) <= {"out", "deep"}
            assert content(out) in (before, "new")
        assert mended(out) in (before, "new"), n
        shutil.rmtree(tmp_path / str(n))


@pytest.mark.usefixtures("by")
@works
def test_power_cut_at_every_step(make, work, tmp_path):
    place = tmp_path / "place"
    out = make(place)
    before, cuts = content(out), PowerCuts(place)
    found = []

    def step(kind, path):
        cuts.step(kind, path)
        found.extend((state, (before, "new")) for state in cuts.leftovers())

    with watched(place, step):
        work(out)
    found += [(state, ("new",)) for state in cuts.leftovers()]
    for n, (state, allowed) in enumerate(found):
        left = lay_out(state, tmp_path / f"cut-{n}")
        assert mended(left / out.relative_to(place)) in allowed, state
        shutil.rmtree(left)


def test_the_model_of_power_cuts_finds_what_is_not_synced(tmp_path, monkeypatch):
    place = tmp_path / "place"
    out = old_folder(place)
    cuts = PowerCuts(place)
    monkeypatch.setattr(disk, "_flush", lambda _: None)
    with watched(place, lambda kind, path: kind == "synced" or cuts.step(kind, path)):
        write(out)
    left = {state.get("out/README.md") for state in cuts.leftovers()}
    assert b"" in left  # as ext4 leaves it
    assert None in left or b"old" not in left
