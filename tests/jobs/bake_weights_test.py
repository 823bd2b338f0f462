"""Weights of a base with an adapter in them, with numpy as the second opinion."""

import json
import tracemalloc
from contextlib import contextmanager

import base_samples as bases
import io_samples as samples
import numpy as np
import pytest
from bake_samples import DOWN, UP, bake, refused_again
from base_samples import BF16, adapter, model, tensors_of
from cli_samples import updates_of

import jaxmerge as jm
from jaxmerge.io import base_model
from jaxmerge.jobs.progress import silent

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16, np.float64])
def test_sums_are_rounded_once_and_the_rest_keeps_its_bits(tmp_path, shards, dtype):
    model(tmp_path / "base", shards=shards, dtype=dtype)
    adapter(tmp_path / "a")
    before, updates = tensors_of(tmp_path / "base"), updates_of(tmp_path / "a")
    found = bake(tmp_path)
    after = tensors_of(tmp_path / "out")
    assert after.keys() == before.keys()
    for key, old in before.items():
        update = updates.get(key.removesuffix(".weight"))
        if update is None:
            assert after[key].tobytes() == old.tobytes()
            continue
        sum_ = (old.astype(np.float64) + update).astype(np.float32)
        wanted = sum_.astype(dtype).astype(np.float64)
        step = np.finfo(np.float32).eps if dtype == np.float32 else 0
        close = np.isclose(after[key].astype(np.float64), wanted, rtol=4e-7, atol=step)
        assert close.mean() > 0.9  # others lie half between two values of the dtype
        size = np.linalg.norm(update)
        lost = np.linalg.norm(after[key].astype(np.float64) - old - update) / size
        assert abs(found.cast_error[key] - lost) < 1e-3 * lost + 1e-6
        change = size / np.linalg.norm(old.astype(np.float64))
        assert found.change[key] == pytest.approx(change, rel=1e-5)
    assert found.change.keys() == {f"{UP}.weight", f"{DOWN}.weight"}
    names = {path.name for path in (tmp_path / "base").iterdir()}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == names | {"README.md", "jaxmerge.json"}
    if shards > 1:
        index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
        size = sum(value.nbytes for value in after.values())
        assert index["metadata"]["total_size"] == size
        assert index["weight_map"].keys() == after.keys()


def test_no_tensor_is_ever_whole(tmp_path, monkeypatch):
    """Memory is that of the adapter and of some blocks, whatever the model's size."""
    shapes = {"fc.weight": (4096, 256), "other.weight": (4096, 256)}
    model(tmp_path / "base", shapes)
    tensors = samples.linear("fc", m=4096, n=256, r=1)
    samples.write(tmp_path / "a", tensors, r=1, lora_alpha=1)
    bake(tmp_path)  # imports and compiles
    monkeypatch.setattr(base_model, "BLOCK", 2**13)
    peaks = {}

    @contextmanager
    def measured(title, total):
        tracemalloc.start()
        with silent(title, total) as advance:
            yield advance
        peaks[title] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    place = {"base": tmp_path / "base", "out": tmp_path / "again"}
    jm.bake(tmp_path / "a", **place, progress=measured)
    assert peaks["writing weights"] < 1e6 < 4096 * 256 * 4 / 4  # of one tensor
    weights = [tmp_path / out / "model.safetensors" for out in ("out", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_base_may_lack_or_have_a_name_in_front(tmp_path):
    adapter(tmp_path / "a")
    inner = {key.removeprefix("model."): s for key, s in bases.LAYERS.items()}
    outer = {f"lm.{key}": shape for key, shape in bases.LAYERS.items()}
    for shapes, says in ((inner, "no 'model.' in front"), (outer, "'lm.' in front of")):
        model(tmp_path / "base", shapes)
        found = bake(tmp_path, force=True)
        assert says in found.notes[0]
        updates = updates_of(tmp_path / "a")
        front = "" if shapes is inner else "lm.model."
        key = f"{front}{UP.removeprefix('model.')}.weight"
        change = tensors_of(tmp_path / "out")[key] - tensors_of(tmp_path / "base")[key]
        samples.close(change, updates[UP], 1e-5)
        dense = place_of_dense(tmp_path)
        jm.bake(dense, base=tmp_path / "base", out=tmp_path / "b", force=True)
        whole = tensors_of(tmp_path / "b")[key]
        np.testing.assert_allclose(whole, tensors_of(tmp_path / "out")[key], atol=1e-6)


def place_of_dense(place):
    if not (place / "dense").exists():
        jm.merge([place / "a"], "total|full", dense="full", out=place / "dense")
    return place / "dense"


def test_embeddings_convolutions_biases_and_attention(tmp_path):
    shapes = {
        "embed.weight": (11, 6),
        "conv.weight": (6, 3, 2, 2),
        "fc.weight": (6, 5),
        "fc.bias": (6,),
        "attn.in_proj_weight": (12, 4),
    }
    model(tmp_path / "base", shapes)
    tensors = samples.embedding("embed") | samples.conv("conv", kernel=(2, 2))
    tensors |= samples.linear("attn", m=12, n=4)
    samples.write(tmp_path / "a", tensors)
    bake(tmp_path)
    before, after = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "out")
    updates = updates_of(tmp_path / "a")
    wanted = {
        "embed.weight": updates["embed"].T,
        "conv.weight": updates["conv"].reshape(6, 3, 2, 2),
        "attn.in_proj_weight": updates["attn"],
    }
    for key in shapes:
        samples.close(after[key], before[key] + wanted.get(key, 0), 1e-6)
    samples.write(
        tmp_path / "a", samples.linear("fc", bias=True), lora_bias=True, use_rslora=True
    )
    bake(tmp_path, force=True)
    after, scale = tensors_of(tmp_path / "out"), 8 / 4**0.5
    bias = samples.linear("fc", bias=True)["base_model.model.fc.lora_B.bias"]
    samples.close(after["fc.bias"], before["fc.bias"] + scale * bias, 1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "custom"])
def test_weights_that_are_stored_transposed(tmp_path, kind):
    """A square weight does not show it: the kind of model does, or its other layers."""
    shapes = {"h.c_attn.weight": (6, 9), "h.c_proj.weight": (6, 6)}
    model(tmp_path / "base", shapes, model_type=kind)
    tensors = samples.linear("h.c_attn", m=9, n=6) | samples.linear(
        "h.c_proj", m=6, n=6
    )
    samples.write(tmp_path / "a", tensors, fan_in_fan_out=True)
    bake(tmp_path)
    before, after = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "out")
    for module, update in updates_of(tmp_path / "a").items():
        key = f"{module}.weight"
        samples.close(after[key], before[key] + update.T, 1e-6)
    if kind == "custom":
        samples.write(
            tmp_path / "b", samples.linear("h.c_proj", m=6, n=6), fan_in_fan_out=True
        )
        with pytest.raises(jm.Refusal, match=r"'h\.c_proj' is stored transposed"):
            jm.bake(tmp_path / "b", base=tmp_path / "base", out=tmp_path / "c")


def test_another_dtype(tmp_path):
    model(tmp_path / "base", dtype=BF16, torch_dtype="bfloat16")
    adapter(tmp_path / "a")
    found = bake(tmp_path, dtype="float32")
    before, after = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "out")
    assert (
        {value.dtype.name for value in after.values()} == {found.dtype} == {"float32"}
    )
    assert not any(found.cast_error.values())
    assert np.array_equal(after["model.norm.weight"], before["model.norm.weight"])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["torch_dtype"] == "float32"
    adapter(tmp_path / "a", scale=100)
    said = refused_again(tmp_path, dtype="float16")
    assert "do not fit into float16; save with dtype='float32'" in said


def test_an_update_below_the_steps_of_the_dtype_is_told(tmp_path):
    model(tmp_path / "base", dtype=BF16)
    adapter(tmp_path / "a", scale=1e-3)
    found = bake(tmp_path)
    assert min(found.cast_error.values()) > 0.5
    assert "took more than half of the update" in found.notes[-1]
