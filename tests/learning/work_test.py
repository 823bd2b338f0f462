"""The folder of a fit: whose it is, and that one fit at a time runs in it."""

import os
import subprocess
import sys

import pytest

from jaxmerge.learning import work as module
from jaxmerge.learning.work import Work

IDENTITY = {"steps": 3}
HOLD = """
import sys
from jaxmerge.learning.work import Work
with Work(sys.argv[1], {"steps": 3}):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Another process that fits in the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "work"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def refuse(folder, message):
    with pytest.raises(ValueError, match=message):
        Work(folder, IDENTITY)


def test_a_second_process_is_refused_until_the_first_one_ends(elsewhere, tmp_path):
    folder = tmp_path / "work"
    refuse(folder, "another fit is running in it.*pass another work=<folder>")
    assert os.listdir(folder) == ["learn.lock"]
    elsewhere.kill()  # it cannot clean up
    elsewhere.wait()
    with Work(folder, IDENTITY) as work:
        assert work.anchors is None


def test_the_lock_ends_with_the_fit_and_with_a_refusal(tmp_path):
    folder = tmp_path / "work"
    with Work(folder, IDENTITY) as work:
        refuse(folder, "another fit is running")
        work.start([1.0])
    with pytest.raises(ValueError, match=r"other steps \(3, now 2\)"):
        Work(folder, {"steps": 2})
    with Work(folder, IDENTITY) as work:
        assert (work.anchors, work.scale) == ([1.0], None)
        work.start([1.0], 0.1 + 0.2)
    with Work(folder, IDENTITY) as work:
        assert (work.anchors, work.scale) == ([1.0], 0.1 + 0.2)
        work.remove()
    assert not folder.exists()


def test_whoever_waited_for_a_fit_that_removes_its_folder_gets_a_new_one(
    tmp_path, monkeypatch
):
    """The file that was opened before is locked, but it is no longer there."""
    folder, first = tmp_path / "work", Work(tmp_path / "work", IDENTITY)
    lock = module.fcntl.flock

    def wait(descriptor, how):
        monkeypatch.setattr(module.fcntl, "flock", lock)
        first.remove()
        first.close()
        lock(descriptor, how)

    monkeypatch.setattr(module.fcntl, "flock", wait)
    with Work(folder, IDENTITY):
        refuse(folder, "another fit is running")


def test_only_what_belongs_to_the_fit_is_removed(tmp_path):
    folder = tmp_path / "work"
    with Work(folder, IDENTITY) as work:
        work.start([1.0])
        work.checkpoints.mkdir()
        (work.checkpoints / "3").mkdir()
        (folder / "notes.txt").write_text("precious")
        work.remove()
    assert os.listdir(folder) == ["notes.txt"]
    refuse(folder, "not that of a fit")


def test_a_folder_of_something_else_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    refuse(tmp_path, "not that of a fit")
    refuse(tmp_path / "thesis.tex", "not that of a fit")
    refuse(tmp_path / "thesis.tex" / "work", "cannot be made and locked")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fcntl", None)
    with pytest.warns(RuntimeWarning, match="no fcntl.*one at a time"):
        work = Work(tmp_path / "work", IDENTITY)
    with work:
        work.start([1.0])
        work.remove()
    assert not work.folder.exists()
