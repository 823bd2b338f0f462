"""Quantised bases as their libraries unpack them: every bit, and what is damaged."""

import json
import shutil
from pathlib import Path

import base_samples as bases
import io_samples as samples
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from cli_samples import updates_of

import jaxmerge as jm
from jaxmerge.io import base_model

MADE = sorted((Path(__file__).parents[1] / "data" / "quantised").glob("*.safetensors"))
NAMES = [path.stem for path in MADE]
pytestmark = pytest.mark.usefixtures("as_a_user")


def base(folder, name, change=None, **further):
    """A model with the layer ``fc`` of a library; gives what the library unpacks."""
    (path,) = (path for path in MADE if path.stem == name)
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        config = json.loads(file.metadata()["quantization_config"])
    expected = tensors.pop("expected")
    tensors |= {"norm.weight": samples.random(6).astype(np.float16), **further}
    if change is not None:
        change(tensors, config)
    bases.save(folder, tensors, quantization_config=config)
    return expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block", [40, 2**21])
def test_weights_are_what_the_library_makes_of_them(name, block, tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "BLOCK", block)
    expected = base(tmp_path / "base", name)
    model = base_model.open_model(tmp_path / "base", dequantise=True)
    assert model.tensors.infos.keys() == {"fc.weight", "norm.weight"}
    assert model.tensors.infos["fc.weight"].shape == expected.shape
    found = [values for _, values in model.blocks("fc.weight")]
    assert len(found) == 1 or block == 40
    assert {values.dtype for values in found} == {expected.dtype}
    np.testing.assert_array_equal(np.concatenate(found), expected)
    np.testing.assert_array_equal(model.tensors.read("fc.weight"), expected)


@pytest.mark.parametrize("name", ["nf4_nested", "int8", "gptq_4", "awq"])
def test_an_adapter_is_added_to_what_they_stand_for(name, tmp_path):
    expected = base(tmp_path / "base", name)
    (tmp_path / "base" / "quantize_config.json").write_text("{}")
    m, n = expected.shape
    adapter = samples.write(tmp_path / "a", samples.linear("fc", m=m, n=n))
    asked = {"base": tmp_path / "base", "out": tmp_path / "out"}
    with pytest.raises(jm.io.AdapterError, match="or pass dequantise=True"):
        jm.bake(adapter, **asked)
    done = jm.bake(adapter, **asked, dequantise=True)
    assert any("1 quantised weights were taken for" in note for note in done.notes)
    assert any("left out 'quantize_config.json'" in note for note in done.notes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == bases.CONFIG
    written = bases.tensors_of(tmp_path / "out")
    assert written.keys() == {"fc.weight", "norm.weight"}
    kept = np.dtype(np.float16) if name == "int8" else expected.dtype
    update = updates_of(adapter)["fc"]
    right = (expected.astype(np.float32) + update).astype(kept)
    assert written["fc.weight"].dtype == kept
    step = 2.0**-8 if name == "nf4_nested" else 2.0**-10
    np.testing.assert_allclose(
        written["fc.weight"].astype(np.float32), right.astype(np.float32), rtol=step
    )
    record = json.loads((tmp_path / "out" / "jaxmerge.json").read_text())
    assert record["settings"]["dequantise"] is True


def test_shards_and_further_weights(tmp_path):
    expected = base(tmp_path / "one", "nf4", **{"head.weight": samples.random(3, 6)})
    tensors = bases.tensors_of(tmp_path / "one")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    bases.save(tmp_path / "base", tensors, shards=3, **config)
    adapter = samples.write(tmp_path / "a", samples.linear("head", m=3, n=6))
    jm.bake(adapter, base=tmp_path / "base", out=tmp_path / "out", dequantise=True)
    written = bases.tensors_of(tmp_path / "out")
    np.testing.assert_array_equal(written["fc.weight"], expected)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == written.keys()


def without(*names):
    def change(tensors, _):
        for name in names:
            del tensors[f"fc.{name}"]

    return change


def other(name, value):
    return lambda tensors, _: tensors.update({f"fc.{name}": value(tensors)})


def said(**values):
    return lambda _, config: config.update(values)


def state(**values):
    """Changes the JSON in a tensor of bitsandbytes."""

    def change(tensors, _):
        key = "fc.weight.quant_state.bitsandbytes__nf4"
        now = json.loads(tensors[key].tobytes()) | values
        tensors[key] = np.frombuffer(json.dumps(now).encode(), np.uint8)

    return change


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("nf4", without("weight.absmax"), "fc.weight.absmax'.*expected 5 values"),
        ("nf4", state(shape=[7, 99]), "expected"),
        ("nf4", state(shape="x"), "shape 'x'"),
        ("nf4", state(blocksize=0), "blocksize 0"),
        ("nf4", state(dtype="float99"), "dtype 'float99'"),
        ("nf4", state(quant_type="fp4"), "quant_type is not 'nf4'"),
        ("nf4_nested", state(nested_offset=None), "nested scales"),
        ("nf4", said(quant_method="gptq"), "says quant_method 'gptq'"),
        ("int8", without("weight"), "no int8 weight"),
        (
            "int8",
            other("weight_format", lambda _: np.full((), 2, np.uint8)),
            "layout of values",
        ),
        ("gptq_4", said(bits=3), "says bits 3"),
        ("gptq_4", said(checkpoint_format="marlin"), "checkpoint_format 'marlin'"),
        ("gptq_4", said(quant_method="other"), "quant_method 'other'"),
        ("gptq_4", without("qzeros"), "no matrix qzeros"),
        ("gptq_4", other("g_idx", lambda t: t["fc.g_idx"] + 9), "do not fit"),
        ("gptq_4", other("qzeros", lambda t: t["fc.qzeros"] * 0 - 1), "in two ways"),
        ("awq", said(version="gemv"), "says version 'gemv'"),
        ("awq", said(group_size="x"), "group_size 'x'"),
        ("awq", said(bits=True), "says bits True"),
        ("awq", other("scales", lambda t: t["fc.scales"][:1]), "do not fit"),
        ("awq", other("weight", lambda t: t["fc.scales"]), "both quantised and not"),
        ("awq", other("SCB", lambda t: t["fc.scales"][0]), "no int8 weight"),
        ("nf4", other("weight_scale", lambda _: samples.random(3)), "float8 weights"),
    ],
)
def test_what_is_not_as_the_library_saves_it_is_refused(name, change, says, tmp_path):
    base(tmp_path / "base", name, change)
    with pytest.raises(jm.io.AdapterError, match=says):
        base_model.open_model(tmp_path / "base", dequantise=True).tensors.read(
            "fc.weight"
        )


def test_a_base_that_is_not_quantised_is_not_unpacked(tmp_path):
    bases.model(tmp_path / "base")
    adapter = bases.adapter(tmp_path / "a")
    with pytest.raises(jm.io.AdapterError, match="leave dequantise out"):
        jm.bake(adapter, base=tmp_path / "base", out=tmp_path / "out", dequantise=True)
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "base")
    base(tmp_path / "base", "nf4")
    with pytest.raises(jm.io.AdapterError, match="4-bit weights") as caught:
        jm.extract(
            tmp_path / "base", base=tmp_path / "base", out=tmp_path / "x", rank=1
        )
    assert "dequantise" not in str(caught.value).replace("model.dequantize()", "")
