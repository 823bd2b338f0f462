"""An adapter baked into its base: what the folder then holds, and what is refused."""

import json

import base_samples as bases
import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy
from bake_samples import DOWN, UP, bake, refused, refused_again
from base_samples import BF16, adapter, model, tensors_of
from cli_samples import document, everything, refuse, updates_of

import jaxmerge as jm

EMBED = "model.embed_tokens"
pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture
def place(tmp_path):
    """A base and an adapter of two of its layers."""
    model(tmp_path / "base")
    adapter(tmp_path / "a")
    return tmp_path


def test_saved_modules_take_the_place_of_those_of_the_base(place):
    saved = {"model.norm.weight": samples.random(6, seed=8)}
    new = {"score.weight": samples.random(3, 6, seed=9)}
    tensors = {f"base_model.model.{k}": v for k, v in (saved | new).items()}
    config = {"modules_to_save": ["norm", "score"], "task_type": "SEQ_CLS"}
    samples.write(place / "a", samples.linear(UP, m=8, n=6) | tensors, **config)
    assert "'score.weight', which this model has not" in refused(place)
    assert "pass new_heads=True" in refused(place)
    found = bake(place, new_heads=True)
    assert found.replaced == ("model.norm.weight",)
    assert found.added == ("score.weight",)
    after = tensors_of(place / "out")
    for key, value in (saved | new).items():
        assert np.array_equal(after[key], value)
    config = json.loads((place / "out/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert len(config["id2label"]) == 3
    tensors["base_model.model.model.norm.weight"] = samples.random(7)
    samples.write(place / "a", samples.linear(UP, m=8, n=6) | tensors)
    said = refused_again(place, new_heads=True)
    assert "'model.norm.weight' is [6], the one that the adapter saved [7]" in said


def test_merges_with_their_heads_and_dense_merges(place):
    head = {"base_model.model.score.weight": samples.random(3, 6)}
    one = samples.write(place / "one", samples.linear(UP, m=8, n=6) | head)
    two = samples.write(place / "two", samples.linear(UP, m=8, n=6, seed=5) | head)
    jm.merge([one, two], "concat", out=place / "a", heads="keep", force=True)
    bake(place, head=place / "a/heads/one.safetensors", new_heads=True)
    lowrank = tensors_of(place / "out")
    assert np.array_equal(lowrank["score.weight"], samples.random(3, 6))
    jm.merge(
        *([one, two], "total|full"),
        **{"dense": "full", "out": place / "dense", "heads": "keep"},
    )
    jm.bake(
        *(place / "dense",),
        base=place / "base",
        out=place / "b",
        head=place / "dense/heads/one.safetensors",
        new_heads=True,
    )
    with pytest.raises(jm.Refusal, match="tensors of an adapter"):
        bake(place, head=place / "one/adapter_model.safetensors", force=True)
    dense = tensors_of(place / "b")
    assert dense.keys() == lowrank.keys()
    for key, value in dense.items():
        np.testing.assert_allclose(value, lowrank[key], atol=1e-5)


def test_what_else_the_folder_holds_is_copied(place):
    base, out = place / "base", place / "out"
    samples.put(place / "elsewhere", "{}")
    (base / "tokenizer.json").symlink_to(place / "elsewhere")
    for name in ("1_Pooling/config.json", "code.py", "README.md", ".git/config"):
        samples.put(base / name)
    for name in ("pytorch_model.bin", "onnx/model.onnx", "fp16/model.safetensors"):
        samples.put(base / name)
    found = bake(place)
    copied = {"tokenizer.json", "1_Pooling/config.json", "code.py", "config.json"}
    assert everything(out).keys() == copied | {
        *("model.safetensors", "README.md", "jaxmerge.json")
    }
    assert not (out / "tokenizer.json").is_symlink()
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert "'pytorch_model.bin'" in found.notes[-1]
    record = json.loads((out / "jaxmerge.json").read_text())
    assert record["output"]["sha256"].keys() | {"jaxmerge.json", "README.md"} == (
        found.files.keys()
    )
    assert record["files"]["base"]["sha256"].keys() == {
        *("config.json", "model.safetensors")
    }
    card = (out / "README.md").read_text()
    assert record["inputs"][0]["sha256"]["adapter_model.safetensors"] in card
    assert record["files"]["base"]["sha256"]["model.safetensors"] in card


def test_only_a_folder_of_bake_is_replaced(place):
    said = document(
        *("bake", place / "a", "--base", place / "base", "-o", place / "out")
    )
    same = ("change", "cast_error", "replaced", "added", "dtype", "size", "notes")
    found = jm.bake(place / "a", base=place / "base", out=place / "c").to_json()
    assert all(said[name] == json.loads(json.dumps(found[name])) for name in same)
    assert "exists already" in refuse(
        *("bake", place / "a", "--base", place / "base", "-o", place / "out")
    )
    bake(place, force=True)
    with pytest.raises(jm.Refusal, match="holds files that are not an adapter"):
        jm.merge([place / "a"], "concat", out=place / "out", force=True)
    with pytest.raises(jm.Refusal, match="holds a full model"):
        jm.verify(place / "out")
    samples.put(place / "out/mine.txt")
    assert "'mine.txt'" in refused_again(place)
    with pytest.raises(jm.Refusal, match="lies in the base model"):
        jm.bake(place / "a", base=place / "base", out=place / "base/out")
    adapter(place / "b")
    with pytest.raises(jm.Refusal, match="not a full model that jaxmerge wrote"):
        jm.bake(place / "a", base=place / "base", out=place / "b", force=True)


def test_modules_that_the_base_lacks_are_named(place):
    adapter(place / "a", **{"modules": ("up",)})
    samples.write(place / "a", samples.linear("model.layers.0.mlp.upp", m=8, n=6))
    said = refused(place)
    assert "changes module 'model.layers.0.mlp.upp', of which this model has no" in said
    assert f"the nearest is '{UP}.weight'" in said
    assert "strip_prefix=<text> and add_prefix=<text>" in said
    samples.write(place / "a", samples.linear(UP, m=8, n=7))
    assert f"'{UP}.weight' is [8, 6], the adapter's update of '{UP}' [8, 7]" in (
        refused(place)
    )
    samples.write(
        place / "a", samples.linear(DOWN, m=6, n=8, bias=True), lora_bias=True
    )
    assert f"no bias '{DOWN}.bias' of that size" in refused(place)


def test_a_copy_of_a_frozen_weight_is_that_of_the_base(place):
    tensors = samples.embedding(EMBED)
    copy = tensors_of(place / "base")[f"{EMBED}.weight"]
    for saved, right in ((copy.astype(BF16), True), (copy[::-1].copy(), False)):
        key = f"base_model.model.{EMBED}.base_layer.weight"
        samples.write(place / "a", tensors | {key: saved})
        if right:
            bake(place)
        else:
            assert "is not what this model has" in refused_again(place)
    update = updates_of(place / "a")[EMBED].T
    samples.close(tensors_of(place / "out")[f"{EMBED}.weight"], copy + update, 1e-6)


@pytest.mark.parametrize(
    ("key", "dtype", "config", "says"),
    [
        ("fc.weight.quant_state.bitsandbytes__nf4", np.uint8, {}, "4-bit weights of b"),
        ("fc.SCB", np.float32, {}, "8-bit weights of bitsandbytes"),
        ("fc.g_idx", np.int32, {}, "GPTQ weights"),
        ("fc.qweight", np.int32, {}, "AWQ or GPTQ weights"),
        ("fc.weight_scale_inv", np.float32, {}, "float8 weights"),
        ("mlp.down_proj_blocks", np.uint8, {}, "MXFP4 weights"),
        ("other.weight", np.int8, {}, "quantised weights"),
        (
            *("other", np.float32, {"quantization_config": {"quant_method": "hqq"}}),
            "weights quantised by 'hqq'",
        ),
    ],
)
def test_nothing_is_added_to_quantised_weights(place, key, dtype, config, says):
    tensors = {key: np.ones((2, 2), dtype)} | tensors_of(place / "base")
    bases.save(place / "base", tensors, **config)
    said = refused(place)
    assert says in said
    assert "give the model in 16 or 32 bits that it was quantised from" in said


def test_folders_that_are_no_base(place):
    base = place / "base"
    with pytest.raises(jm.Refusal, match="no such folder; expected a Hugging Face"):
        jm.bake(place / "a", base=place / "nothing", out=place / "out")
    weights = (base / "model.safetensors").read_bytes()
    samples.put(base / "model.safetensors.index.json", "{}")
    assert "holds both model.safetensors and" in refused(place)
    (base / "model.safetensors.index.json").unlink()
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "it holds 'pytorch_model.bin'. Load the model with" in refused(place)
    (base / "model-00001-of-00002.safetensors").write_bytes(weights)
    assert "for its shards 'model-00001-of-00002.safetensors'" in refused(place)
    with pytest.raises(jm.Refusal, match="this is an adapter, not a model"):
        jm.bake(place / "a", base=place / "a", out=place / "out")
    (base / "model-00001-of-00002.safetensors").unlink()
    (base / "model.safetensors").write_bytes(weights[:-4])
    assert "not a complete safetensors file" in refused(place)
    (base / "model.safetensors").write_bytes(weights)
    (base / "config.json").unlink()
    assert "has no config.json" in refused(place)


def test_weights_that_are_not_finite_are_refused(place):
    tensors = tensors_of(place / "base")
    tensors[f"{UP}.weight"][2, 3] = np.nan
    safetensors.numpy.save_file(tensors, place / "base/model.safetensors")
    assert f"'{UP}.weight' holds NaN" in refused(place)
