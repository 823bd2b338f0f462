"""Full models and extracted adapters beside what PEFT and transformers make of them."""

import json

import base_samples as bases
import model_samples as models
import numpy as np
import pytest

import jaxmerge as jm

pytestmark = pytest.mark.usefixtures("as_a_user")
CASES = {
    "llama": (
        models.llama,
        {
            "target_modules": ["q_proj", "down_proj", "lm_head", "embed_tokens"],
            "rank_pattern": {"down_proj": 5},
            "alpha_pattern": {"q_proj": 2},
            "use_rslora": True,
        },
    ),
    "gpt2": (
        models.gpt2,
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "bert": (
        models.bert,
        {
            "target_modules": ["query", "dense"],
            "modules_to_save": ["classifier"],
            "lora_bias": True,
        },
    ),
    "clip": (models.clip, {"target_modules": ["q_proj", "fc1", "patch_embedding"]}),
}


def values_of(model):
    return {name: value.float().numpy() for name, value in model.state_dict().items()}


def close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_full_model_is_that_of_peft(tmp_path, name):
    make, config = CASES[name]
    make().save_pretrained(tmp_path / "base", max_shard_size="5KB")
    adapted = models.adapted(tmp_path / "base", tmp_path / "a", **config)
    wanted = models.outputs(adapted)
    jm.bake(tmp_path / "a", base=tmp_path / "base", out=tmp_path / "out")
    found = models.loaded(tmp_path / "out")
    np.testing.assert_allclose(models.outputs(found), wanted, atol=1e-5)
    close(values_of(found), values_of(models.merged(adapted)))


TIED = {
    "llama embedding": (
        *(lambda: models.llama(tied=True), {"target_modules": ["embed_tokens"]}),
        *("model.embed_tokens.weight", "lm_head.weight"),
    ),
    "gpt2 head": (
        *(models.gpt2, {"target_modules": ["lm_head", "c_attn"]}),
        *("transformer.wte.weight", "lm_head.weight"),
    ),
    "bert both": (
        lambda: models.bert("BertForMaskedLM"),
        {"target_modules": ["word_embeddings", "cls.predictions.decoder"]},
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.thorough) if "llama" in name else name
        for name in TIED
    ],
)
def test_tied_weights_are_untied_or_changed_together(tmp_path, name):
    make, config, embedding, head = TIED[name]
    make().save_pretrained(tmp_path / "base")
    adapted = models.adapted(tmp_path / "base", tmp_path / "a", **config)
    wanted = models.outputs(adapted)
    place = {"base": tmp_path / "base", "out": tmp_path / "out"}
    with pytest.raises(jm.Refusal) as refused:
        jm.bake(tmp_path / "a", **place)
    assert f"{embedding!r} and {head!r} are one weight in this model" in str(
        refused.value
    )
    assert "pass tied='untie'" in str(refused.value)
    found = jm.bake(tmp_path / "a", **place, tied="untie")
    assert head in found.added
    untied = models.loaded(tmp_path / "out")
    assert untied.config.tie_word_embeddings is False
    np.testing.assert_allclose(models.outputs(untied), wanted, atol=1e-5)
    jm.bake(tmp_path / "a", **place, tied="together", force=True)
    both, theirs = models.loaded(tmp_path / "out"), models.merged(adapted)
    assert both.config.tie_word_embeddings is True
    close(values_of(both), values_of(theirs))
    assert np.abs(models.outputs(both) - wanted).max() > 0.1  # what PEFT's merge does


def test_a_saved_head_of_a_tied_model_unties_it_as_peft_does(tmp_path):
    models.llama(tied=True).save_pretrained(tmp_path / "base")
    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    adapted = models.adapted(tmp_path / "base", tmp_path / "a", **config)
    place = {"base": tmp_path / "base", "out": tmp_path / "out"}
    with pytest.raises(jm.Refusal, match="brings a weight of its own"):
        jm.bake(tmp_path / "a", **place, tied="together")
    jm.bake(tmp_path / "a", **place, tied="untie")
    found = models.loaded(tmp_path / "out")
    np.testing.assert_allclose(
        models.outputs(found), models.outputs(adapted), atol=1e-5
    )
    close(values_of(found), values_of(models.merged(adapted)))


def test_bfloat16_is_rounded_once(tmp_path):
    """PEFT forms the update in bfloat16 and rounds it before it is added."""
    models.llama().bfloat16().save_pretrained(tmp_path / "base")
    adapted = models.adapted(tmp_path / "base", tmp_path / "a", **CASES["llama"][1])
    exact = values_of(models.merged(adapted))  # in float32
    found = jm.bake(tmp_path / "a", base=tmp_path / "base", out=tmp_path / "out")
    ours = bases.tensors_of(tmp_path / "out")
    for key, value in ours.items():
        steps = np.spacing(np.abs(exact[key]).astype(bases.BF16)).astype(np.float32)
        assert np.all(np.abs(value.astype(np.float32) - exact[key]) <= 0.501 * steps)
    assert 0 < max(found.cast_error.values()) < 0.05
    assert found.dtype == "bfloat16"


def test_a_model_whose_ties_are_not_known_is_refused(tmp_path):
    base = models.llama(tied=True)
    base.save_pretrained(tmp_path / "base")
    models.adapted(tmp_path / "base", tmp_path / "a", target_modules=["embed_tokens"])
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text())
    place = {"base": tmp_path / "base", "out": tmp_path / "out"}
    jm.bake(tmp_path / "a", **place, tied="together")
    place["force"] = True
    for change, says in (
        ({"architectures": None}, "not known for a config without architectures"),
        ({"tie_word_embeddings": False}, "is false in config.json, but the weights"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(jm.Refusal, match=says):
            jm.bake(tmp_path / "a", **place)


@pytest.mark.parametrize(
    "name", ["gpt2", pytest.param("bert", marks=pytest.mark.thorough)]
)
def test_an_extracted_adapter_makes_the_tuned_model_of_the_base(tmp_path, name):
    """Everything differs: norms, biases, a tied embedding; and PEFT merges the same."""
    make, _ = CASES[name]
    base = make()
    base.save_pretrained(tmp_path / "base")
    with models.torch.no_grad():
        for value in base.parameters():
            value.mul_(-0.5)
    base.save_pretrained(tmp_path / "tuned")
    place = {"base": tmp_path / "base", "out": tmp_path / "x"}
    save = [] if name == "gpt2" else ["classifier"]
    found = jm.extract(tmp_path / "tuned", **place, rank=16, others="save", save=save)
    assert min(found.saved.energy.values()) > 1 - 1e-5
    wanted = models.outputs(base)
    with_adapter = models.with_adapter(tmp_path / "base", tmp_path / "x")
    np.testing.assert_allclose(models.outputs(with_adapter), wanted, atol=1e-4)
    merged = models.merged(with_adapter)
    np.testing.assert_allclose(models.outputs(merged), wanted, atol=1e-4)
    place["out"] = tmp_path / "again"
    jm.bake(tmp_path / "x", **place, tied="untie")
    again = models.loaded(tmp_path / "again")
    np.testing.assert_allclose(models.outputs(again), wanted, atol=1e-4)
