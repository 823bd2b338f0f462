"""Dense merges, which are weight deltas, in the weights of their base."""

import json

import numpy as np
import pytest
from base_samples import LAYERS, adapter, model, tensors_of

import jaxmerge as jm

pytestmark = pytest.mark.usefixtures("as_a_user")


def test_names_of_deltas_are_changed_like_those_of_adapters(tmp_path):
    adapter(tmp_path / "a")
    jm.merge([tmp_path / "a"], "total|full", dense="full", out=tmp_path / "dense")
    inner = {key.replace("model.", "net.body."): x for key, x in LAYERS.items()}
    model(tmp_path / "base", inner)
    names = {"strip_prefix": "model.", "add_prefix": "net.body."}
    with pytest.raises(jm.io.AdapterError, match=r"nearest is .*strip_prefix=<text>"):
        jm.bake(tmp_path / "dense", base=tmp_path / "base", out=tmp_path / "out")
    for given in ("a", "dense"):
        out = tmp_path / f"{given}_out"
        jm.bake(tmp_path / given, base=tmp_path / "base", out=out, **names)
    record = json.loads((out / "jaxmerge.json").read_text())
    assert record["read_options"] == names
    expected, found = (tensors_of(tmp_path / f"{x}_out") for x in ("a", "dense"))
    base = tensors_of(tmp_path / "base")
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-6)
        changed = key.endswith(("up.weight", "down.weight"))
        assert np.array_equal(value, base[key]) is not changed


def test_deltas_of_another_model_are_refused(tmp_path):
    adapter(tmp_path / "a")
    jm.merge([tmp_path / "a"], "total|full", dense="full", out=tmp_path / "dense")
    up = "model.layers.0.mlp.up.weight"
    model(tmp_path / "base", {**LAYERS, up: (9, 6)})
    with pytest.raises(jm.io.AdapterError, match=r"\[8, 6\], the weight of .*\[9, 6\]"):
        jm.bake(tmp_path / "dense", base=tmp_path / "base", out=tmp_path / "out")
