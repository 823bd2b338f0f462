"""``jaxmerge learn --unit``: blocks and layers, of all kinds of bases."""

import causal_samples
import learn_samples
import numpy as np
import pytest
import safetensors.numpy
from cli_samples import document, everything, jaxmerge, refuse, succeed
from learn_samples import QUERY, TASKS, ask, stopped_after

import jaxmerge as jm

pytest_plugins = ["learn_fixtures"]
pytestmark = pytest.mark.usefixtures("as_a_user")
THOROUGH = pytest.mark.thorough
SMALL = {"batch": 8, "limit": 8}


def arguments(inputs, out, unit, pipeline="tara_b", **options):
    asked = {"unit": unit, "loss": "features"} | options
    asked |= {} if unit == "layer" else {"start": "auto"}
    return ask(inputs, out, pipeline, **asked)


@pytest.mark.thorough
@pytest.mark.parametrize("unit", ["block", pytest.param("layer", marks=THOROUGH)])
def test_a_merge_is_learned_recorded_and_goes_on_after_a_kill(
    unit, bert, tmp_path, monkeypatch
):
    steps = {"steps": 20, "rate": 0.05} if unit == "block" else {}
    asked = arguments(bert[:-2], tmp_path / "whole", unit, **SMALL, **steps)
    found = document(*asked)
    losses = found["features"]
    assert losses.keys() == set(TASKS)
    assert found["objective"]["last"] < found["objective"]["first"]
    assert found["recipe"]["unit"] == unit
    assert ("steps" in found["recipe"]) == (unit == "block")
    assert found["start"] is None
    phi = safetensors.numpy.load_file(tmp_path / "whole" / "phi.safetensors")
    assert np.ptp(phi[QUERY]) > 0.01
    assert "the fit is not repeated" in succeed("verify", tmp_path / "whole")
    asked[asked.index("-o") + 1] = tmp_path / "out"
    with stopped_after(1, monkeypatch):
        assert jaxmerge(*asked).exit_code == 130
    assert (tmp_path / "out.learning" / "checkpoints").is_dir()
    said = succeed(*asked)
    assert ("in closed form" in said) == (unit == "layer")
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_one_adapter_of_a_language_model_comes_back_in_python(tmp_path):
    causal_samples.base(tmp_path / "base")
    adapters = causal_samples.adapters(tmp_path / "in", TASKS[:1])
    causal_samples.texts(tmp_path / "data", TASKS[:1])
    found = jm.learn(
        adapters,
        "tara_a",
        unit="layer",
        base=tmp_path / "base",
        data=tmp_path / "data",
        out=tmp_path / "out",
    )
    assert found.recipe.loss == "features"
    for phi in found.outcome.phis.values():
        np.testing.assert_allclose(phi, 1, atol=1e-3)


def test_what_is_not_of_blocks_is_refused(bert, tmp_path):
    out = tmp_path / "out"
    for options, message in (
        ({"loss": "entropy"}, "--unit block compares hidden states; leave out --loss"),
        ({"accumulate": True}, "learns no more at a time; leave out --accumulate"),
        ({"unit": "layer", "objective": "tchebycheff"}, "leave out --objective tch"),
        (
            {"unit": "layer", "pipeline": "tara_a|svc"},
            "--unit layer has no closed form for tara_a|svc, which is not linear in "
            "its coefficients; learn tara_a, tara_b or adamerging(clamp=False), "
            "without steps after them, or give --unit block",
        ),
        ({"text_heads": "x"}, "features needs no predictions; leave out --text-heads"),
    ):
        said = refuse(*arguments(bert, out, **{"unit": "block"} | options))
        assert message in said, said


@THOROUGH
def test_a_tower_of_images(tmp_path):
    learn_samples.clip(tmp_path / "base")
    layer = "vision_model.encoder.layers.0.self_attn"
    modules = [f"{layer}.q_proj", f"{layer}.out_proj"]
    folders = learn_samples.adapters(tmp_path / "in", modules, head=None)
    learn_samples.images(tmp_path / "data")
    where = ["--base", tmp_path / "base", "--data", tmp_path / "data"]
    for unit in ("block", "layer"):
        steps = {"steps": 10} if unit == "block" else {}
        asked = arguments([*folders, *where], tmp_path / unit, unit, **steps)
        found = document(*asked)
        assert found["objective"]["last"] < found["objective"]["first"]
