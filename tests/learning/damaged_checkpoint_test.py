"""Checkpoints that a power cut or a bad disk damaged: the one before, or a refusal."""

import json
import shutil

import numpy as np
import pytest
from fit_problem import run
from tiers import in_turn

from jaxmerge.disk import Mended
from jaxmerge.learning.checkpoint import CheckpointError, Checkpoints

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 4 and 8, and the fit without any."""
    folder = tmp_path_factory.mktemp("saved") / "fit"
    run(steps=8, steps_per_call=4, checkpoint=folder)
    return folder, run(steps=12, steps_per_call=4)


def largest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def other_numbers(folder):
    """The state of another step: whole files with the wrong numbers."""
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.with_name("4") / "state", folder / "state")


DAMAGES = {
    "all files empty": empty,
    "cut": lambda folder: cut(largest(folder / "state")),
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no history": lambda folder: shutil.rmtree(folder / "history"),
    "no identity": lambda folder: shutil.rmtree(folder / "identity"),
    "identity cut": lambda folder: cut(largest(folder / "identity")),
    "other numbers": other_numbers,
}


@pytest.mark.parametrize("damage", in_turn([*DAMAGES], quick=3))
def test_a_damaged_newest_checkpoint(damage, saved, tmp_path):
    folder, expected = saved
    shutil.copytree(folder, tmp_path / "fit")
    DAMAGES[damage](tmp_path / "fit" / "8")
    with pytest.warns(Mended, match=r"step 8 is damaged .*goes on from that of step 4"):
        found = run(steps=12, steps_per_call=4, checkpoint=tmp_path / "fit")
    np.testing.assert_array_equal(found.history.losses, expected.history.losses)
    run(steps=12, steps_per_call=4, checkpoint=tmp_path / "fit")  # no warning any more


def test_nothing_but_damaged_checkpoints(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "fit")
    for step in ("4", "8"):
        empty(tmp_path / "fit" / step)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in it can be read .*step 8"
    ):
        run(steps=12, steps_per_call=4, checkpoint=tmp_path / "fit")
    assert (tmp_path / "fit" / "8").exists()


def test_a_full_disk(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("RESOURCE_EXHAUSTED: [OS error 28: No space left on device]")

    with Checkpoints(tmp_path / "fit", {}) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
        with pytest.raises(CheckpointError, match=r"cannot be written \(No space"):
            checkpoints.save(1, {"x": np.ones(2)}, {"y": np.ones(1)})
        monkeypatch.undo()


def test_checkpoints_without_a_digest_are_read(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "fit")
    path = largest(tmp_path / "fit" / "8" / "identity")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k != "content"}))
    run(steps=12, steps_per_call=4, checkpoint=tmp_path / "fit")
