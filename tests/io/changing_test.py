"""Inputs that another program changes while they are read."""

import os
import shutil

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy
from cli_samples import python

from jaxmerge import io
from jaxmerge.io import opening, read
from jaxmerge.io.tensors import SafetensorsFile
from jaxmerge.models import hub
from jaxmerge.untrusted.safetensors_file import DTYPES, Safetensors


def replace(folder):
    other = samples.write(folder.with_name("other"), samples.linear("h.0.fc", seed=7))
    os.replace(other / samples.SAFE, folder / samples.SAFE)


def write_in_place(folder):
    path = folder / samples.SAFE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def exchange_folders(folder):
    other = samples.write(folder.with_name("other"), samples.linear("h.0.fc", seed=7))
    folder.rename(folder.with_name("before"))
    other.rename(folder)


def change_the_config(folder):
    samples.write(folder, r=4, lora_alpha=99)


def remove(folder):
    shutil.rmtree(folder)


CHANGES = (replace, write_in_place, exchange_folders, change_the_config, remove)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["opened", "read", "hashed"])
def test_an_adapter_that_changes_is_refused(change, moment, tmp_path, monkeypatch):
    folder = samples.write(tmp_path / "in")
    place, name = {
        "opened": (opening, "specs_of"),
        "read": (read, "_read_all"),
        "hashed": (read, "_source"),
    }[moment]
    work = getattr(place, name)

    def late(*arguments):
        if moment == "opened":
            change(folder)
            return work(*arguments)
        found = work(*arguments)
        change(folder)
        return found

    monkeypatch.setattr(place, name, late)
    with pytest.raises(
        (io.AdapterError, FileNotFoundError), match=r"changed while|No such file"
    ):
        io.load_peft([folder])


def test_a_file_that_does_not_belong_to_the_adapter_may_change(tmp_path, monkeypatch):
    folder = samples.write(tmp_path / "in")
    source = read._source

    def late(*arguments):
        (folder / "README.md").write_text("new")
        return source(*arguments)

    monkeypatch.setattr(read, "_source", late)
    assert io.load_peft([folder]).stacks


CUT = """
import os, sys
from pathlib import Path
from jaxmerge.untrusted.safetensors_file import Safetensors
path = Path(sys.argv[1])
file = Safetensors(path)
os.truncate(path, 4096)
try:
    file.read("x")
except ValueError as error:
    print(error)
"""


def test_a_file_that_is_cut_does_not_end_the_process(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"x": np.ones(2**20, np.float32)}, path)
    done = python(CUT, path, check=False)
    assert (done.returncode, done.stdout) == (0, "was cut short while it was read\n")


def test_what_is_cut_is_named(tmp_path, monkeypatch):
    path = tmp_path / hub.WEIGHTS
    safetensors.numpy.save_file({"x": np.ones(2**12, np.float32)}, path)
    file = SafetensorsFile(path)
    whole = path.read_bytes()
    os.truncate(path, 4096)
    with pytest.raises(io.AdapterError, match=r"was cut short while it was read; let"):
        file.read("x")
    path.write_bytes(whole)
    read_tensor = Safetensors.read
    monkeypatch.setattr(
        Safetensors, "read", lambda *a: (os.truncate(path, 4096), read_tensor(*a))
    )
    with pytest.raises(ValueError, match=r"model\.safetensors: .* was cut short"):
        hub.read_tensors(tmp_path)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "BOOL", "I64"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_values_are_those_of_the_file(dtype, shape, tmp_path):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(DTYPES[dtype])
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"x": values, "y": np.ones(3, np.uint8)}, path)
    found = Safetensors(path).read("x")
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(found, values)
