"""Folders that version 0.1.0 wrote still load and verify, bit by bit.

They were made of the adapters in ``in``, the base and the data beside them, by the
commands of that version, with relative paths.
"""

import shutil

import numpy as np
import pytest
from reference import ROOT

import jaxmerge as jm
from jaxmerge import io

TASKS = ("cars", "dtd", "svhn")


@pytest.fixture
def place(tmp_path, monkeypatch, as_a_user):
    shutil.copytree(ROOT / "tests" / "data" / "version_0_1_0", tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize(
    "folder", ["trimmed", "regmean", "iteris", "dare", "tara_b", "adamerging"]
)
def test_merges_verify(folder, place):
    found = jm.verify(folder)
    assert found.recomputed
    assert not found.serious
    assert set(found.read_by_fit.values()) <= {"unchanged"}
    spoilt = place / folder / "adapter_model.safetensors"
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"\x01")
    assert jm.verify(folder).serious


def test_a_checkpoint_of_orbax_loads(place):
    stored = io.load_orbax("orbax")
    again = io.load_peft([f"in/{task}" for task in TASKS], heads="keep")
    assert stored.names == again.names
    assert stored.options == again.options
    for module, stack in again.stacks.items():
        assert np.array_equal(stored.stacks[module].b, stack.b)
        assert np.array_equal(stored.stacks[module].a, stack.a)


def test_statistics_merge(place):
    folders = [f"in/{task}" for task in TASKS]
    merged = jm.merge(folders, "ssr", out="ssr", stats="stats", heads="keep")
    assert merged.saved.rank
    assert not jm.verify("ssr").differences
