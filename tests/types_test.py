"""What an editor knows of the public names, as pyright sees them from outside."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from reference import ROOT

pytest.importorskip("pyright", reason="pyright is not installed: pip install .[test]")

MISTAKES = """\
import jax
import jaxmerge as jm

def wrong(stack: jm.AdapterStack, matrices: jax.Array) -> None:
    jm.tie  # no such name
    jm.io.load_pft  # no such name
    stack.replace(c=matrices)  # no such field
    jm.ties(matrices)  # no density
    jm.core_space(jm.pico)  # a merger is no rule
    jm.then(jm.concat, jm.balance)  # of stacks, not of updates
    jm.map_modules(jm.concat, {"q": stack})["q"].c  # no such factor
    jm.merge(["a", "b"], "ties", out="c", weight=[1.0])  # no such option
    jm.merge(["a", "b"], "ties", out="c", weight_file="bin")
"""


def complaints(file: Path) -> list[tuple[int, str]]:
    """Line and message of everything that pyright finds in a file."""
    command = [sys.executable, "-m", "pyright", "--outputjson", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    return [
        (found["range"]["start"]["line"] + 1, found["message"])
        for found in report["generalDiagnostics"]
    ]


def test_users_types_are_known():
    """Strict mode, with `assert_type` for what the main functions return."""
    assert complaints(ROOT / "tests/support/typed_user.py") == []


def test_mistakes_are_found(tmp_path):
    """Names, fields, keywords and kinds of functions; nothing passes as unknown."""
    file = tmp_path / "mistakes.py"
    file.write_text(MISTAKES)
    lines = MISTAKES.splitlines()
    expected = {number for number, line in enumerate(lines, 1) if "  # " in line}
    assert {number for number, _ in complaints(file)} == expected
