"""Files of Keras: what its layers compute, and files that KerasHub loads again."""

import json
import shutil

import numpy as np
import pytest
from reference import ROOT

import jaxmerge as jm
from jaxmerge.io.bridges.keras import KerasFile

h5py = pytest.importorskip("h5py")
FILE = ROOT / "tests/data/keras/small.lora.h5"
ALPHA = 6  # of the layers that made it
EQUATIONS = {"3": "bd,dh->bh", "12": "btd,ndh->btnh", "7": "btnh,nhd->btd"}
KERNELS = {"3": (6, 5), "12": (3, 6, 4), "7": (3, 4, 6)}


def kernel(path, index, alpha=ALPHA):
    """What is added to a kernel, from the arrays of a file."""
    with h5py.File(path, "r") as file:
        pair = file[f"lora/{index}/vars"]
        a, b = pair["lora_kernel_a"][()], pair["lora_kernel_b"][()]
    return alpha / len(b) * (a @ b)


def test_layers_compute_what_the_updates_say():
    adapters = jm.io.load_peft([FILE], lora_alpha=ALPHA)
    with np.load(FILE.with_name("small.npz")) as made:
        for index, equation in EQUATIONS.items():
            stack = adapters.stacks[f"lora.{index}"]
            update = np.asarray(stack.b[0] @ stack.a[0]).T.reshape(KERNELS[index])
            found = np.einsum(equation, made[f"{index}/x"], update)
            np.testing.assert_allclose(found, made[f"{index}/added"], atol=2e-5)


def test_files_are_planned_merged_verified_and_written_back(tmp_path):
    other = tmp_path / "other.lora.h5"
    shutil.copyfile(FILE, other)
    with h5py.File(other, "r+") as file:
        for index in EQUATIONS:
            values = file[f"lora/{index}/vars/lora_kernel_a"]
            values[...] = np.roll(values[()], 1, 0)
    with pytest.raises(jm.io.AdapterError, match="a LoRA file of Keras holds no alpha"):
        jm.plan([FILE, other])
    assert len(jm.plan([FILE, other], lora_alpha=ALPHA).plan.modules) == 3
    merged = tmp_path / "merged"
    jm.merge([FILE, other], "concat|scale(0.5)", out=merged, lora_alpha=ALPHA)
    assert not jm.verify(merged).serious
    back = tmp_path / "back"
    for force in (False, True):
        jm.convert([merged], to="keras", out=back, lora_alpha="rank", force=force)
    assert sorted(x.name for x in back.iterdir()) == [
        "adapter.lora.h5",
        "jaxmerge.json",
    ]
    assert json.loads((back / "jaxmerge.json").read_text())["lora_alpha"] == "rank"
    written = back / "adapter.lora.h5"
    assert KerasFile(written).rank == 4
    for index in EQUATIONS:
        expected = (kernel(FILE, index) + kernel(other, index)) / 2
        np.testing.assert_allclose(kernel(written, index, alpha=4), expected, atol=1e-5)


def damaged(path, change):
    shutil.copyfile(FILE, path)
    with h5py.File(path, "r+") as file:
        change(file)


def replaced(key, **options):
    def change(file):
        values = file[key][()]
        del file[key]
        file.create_dataset(key, data=values, **options)

    return change


def linked(key, link):
    def change(file):
        del file[key]
        file[key] = link

    return change


A = "lora/3/vars/lora_kernel_a"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file.pop(A), "'lora_kernel_a' is missing or leads elsewhere"),
        (linked(A, h5py.ExternalLink("/etc/other.h5", "x")), "leads elsewhere"),
        (linked(A, h5py.SoftLink("/lora/7/vars/lora_kernel_a")), "leads elsewhere"),
        (replaced(A, compression="gzip"), "is compressed"),
        (linked("lora/vars/rank", np.int64(3)), "expected rank 3"),
        (linked(A, np.ones((6, 2), np.int32)), "of int32"),
        (linked(A, np.ones((6, 3), np.float32)), "expected rank 2"),
        (lambda file: file.move("lora", "other"), "'lora' is"),
        (
            lambda file: (file.pop(A), file.create_dataset(A, (10**6, 2), "f4")),
            "larger than the file",
        ),
    ],
)
def test_what_keras_does_not_write_is_refused(change, says, tmp_path):
    path = tmp_path / "bad.lora.h5"
    damaged(path, change)
    with pytest.raises(jm.io.AdapterError, match=says):
        jm.io.load_peft([path], lora_alpha=ALPHA)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "cut.lora.h5"
    path.write_bytes(FILE.read_bytes()[:900])
    with pytest.raises(jm.io.AdapterError, match="not a file that save_lora_weights"):
        jm.io.load_peft([path], lora_alpha=ALPHA)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(jm.Refusal, match=r"jaxmerge\[keras\]"):
        jm.plan([FILE], lora_alpha=1)
