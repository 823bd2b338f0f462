"""``merge --leave-out``: an adapter that is absent in a block of the model."""

import json

import numpy as np
import pytest
from cli_samples import close, document, refuse, succeed, three, updates_of

from jaxmerge import io, leave_out, stack_adapters

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture
def folders(tmp_path):
    return three(tmp_path / "in", bias=True)


def test_what_is_left_out_is_absent_in_the_block_alone(folders, tmp_path):
    """The mean of one module is over those that are left, biases included."""
    out = tmp_path / "out"
    said = succeed(
        *("merge", *folders, "-p", "average", "--leave-out", "cars@h.0.q"),
        *("--out", out),
    )
    assert "without   cars@h.0.q" in said
    cars, dtd, svhn = map(updates_of, folders)
    expected = {
        "h.0.q": (dtd["h.0.q"] + svhn["h.0.q"]) / 2,
        "h.0.o": (cars["h.0.o"] + dtd["h.0.o"]) / 2,
    }
    close(updates_of(out), expected)
    adapters, merged = io.load_peft(folders), io.load_peft([out])
    np.testing.assert_allclose(
        merged.biases["h.0.q"][0], adapters.biases["h.0.q"][1:].mean(axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(
        merged.biases["h.0.o"][0], adapters.biases["h.0.o"][:2].mean(axis=0), rtol=1e-5
    )
    recipe = json.loads((out / "jaxmerge.json").read_text())["recipe"]
    assert recipe["left_out"] == ["cars@h.0.q"]
    assert document("verify", out)["identical"]


def test_a_module_without_any_adapter_is_left_out_of_the_merge(folders, tmp_path):
    entries = [f"--leave-out={task}@h.0.o" for task in ("cars", "dtd")]
    found = document(
        "merge", *folders, "-p", "concat", *entries, "--out", tmp_path / "out"
    )
    assert found["omitted"] == ["h.0.o"]
    assert set(updates_of(tmp_path / "out")) == {"h.0.q"}
    assert document("verify", tmp_path / "out")["identical"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("cars@h.1", "no adapted module is 'h.1' or lies in it"),
        ("cars@h.0.", "no adapted module is 'h.0.'"),
        ("cras@h.0", "no task is named 'cras', there are cars, dtd, svhn"),
        ("cars", "no block of the model; write <task>@<block>"),
    ],
)
def test_what_does_not_exist_is_refused(folders, tmp_path, entry, said):
    asked = ("merge", *folders, "-p", "concat", "--out", tmp_path / "out")
    found = refuse(*asked, "--leave-out", entry)
    assert said in found
    assert f"--leave-out {entry}" in found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_stack_keeps_its_padding_and_its_dtype(dtype):
    pairs = [(np.ones((4, r)), np.ones((r, 3))) for r in (1, 3)]
    stack = stack_adapters([*pairs, None], dtype=dtype)
    found = leave_out(stack, {1})
    assert found.ranks == (1, 0, 0)
    assert found.a.shape == stack.a.shape
    assert found.b.dtype == dtype
    assert not found.b[1].any()
    assert found.present == (0,)
    assert leave_out(stack, {0, 1}) is None
    np.testing.assert_array_equal(leave_out(stack, ()).a, stack.a)
