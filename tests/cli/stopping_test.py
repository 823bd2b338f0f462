"""Commands that are stopped, or whose disk is full, and what the next run says."""

import json
import os
import signal
import subprocess
import sys

import pytest
from cli_samples import everything, jaxmerge, refuse, succeed, three

from jaxmerge.cli import exits
from jaxmerge.io import write as write_module

pytestmark = pytest.mark.usefixtures("as_a_user")
MARK = "0123456789ab"


@pytest.fixture
def handlers():
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def ask(tmp_path):
    folders = three(tmp_path / "in")
    return ("merge", *folders, "-p", "concat", "-o", tmp_path / "out", "--force")


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_request_to_end_is_as_ctrl_c(number, ask, tmp_path, monkeypatch):
    succeed(*ask)
    before = everything(tmp_path)
    exits.stop_as_by_ctrl_c()
    monkeypatch.setattr(
        write_module, "build_card", lambda *_: os.kill(os.getpid(), number)
    )
    assert jaxmerge(*ask).exit_code == 130
    found = json.loads(jaxmerge(*ask, "--json").stdout)
    assert found == {"error": "interrupted", "exit_code": 130}
    assert everything(tmp_path) == before


@pytest.mark.usefixtures("handlers")
def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    exits.stop_as_by_ctrl_c()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_the_next_run_restores_and_says_so(ask, tmp_path):
    succeed(*ask)
    before = everything(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / f".out.{MARK}.old")
    (tmp_path / f".out.{MARK}.new" / "heads").mkdir(parents=True)
    result = jaxmerge(*ask[:-1])  # without --force
    assert result.exit_code == 2
    notes = result.stderr.splitlines()
    assert notes[0].startswith(f"note: {tmp_path}/out: restored from .out.{MARK}.old")
    assert notes[1].startswith(f"note: {tmp_path}/.out.{MARK}.new: removed")
    assert notes[2].startswith(f"error: {tmp_path}/out: exists already")
    assert everything(tmp_path / "out") == before
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_full_disk(ask, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_module, "build_card", fail)
    said = refuse(*ask)
    assert (
        said == f"error: {tmp_path}/out: cannot be written (No space left on device)\n"
    )


def test_output_that_cannot_be_printed():
    code = "from jaxmerge.cli import main; main()"
    ask = [sys.executable, "-c", code, "methods"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(ask, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: cannot write: No space left on device\n",
    )
