"""LoRA that another adapter replaces, and LoRA on fused experts: refused by name."""

import io_samples as samples
import pytest

from jaxmerge import io

START = "base_model.model."


def saved(module, **more):
    return samples.linear() | {f"{START}{module}.weight": samples.random(8, 5), **more}


@pytest.mark.parametrize("policy", ["error", "first", "mean", "keep"])
@pytest.mark.parametrize("turned", [False, True])
def test_lora_on_a_module_that_another_adapter_replaces(tmp_path, policy, turned):
    lora = samples.linear() | samples.linear("lm_head", m=8)
    one = samples.write(tmp_path / "lora", lora, target_modules=["fc", "lm_head"])
    two = samples.write(
        tmp_path / "saved", saved("lm_head"), modules_to_save=["lm_head"]
    )
    folders = [two, one] if turned else [one, two]
    says = r"'lm_head': .*lora updates it by LoRA, .*saved saves it whole"
    with pytest.raises(io.AdapterError, match=says):
        io.load_peft(folders, heads=policy)
    kinds = [
        conflict.kind for conflict in io.plan_peft(folders, heads=policy).conflicts
    ]
    assert kinds == ["replaced", "heads"] if policy == "error" else ["replaced"]


def test_lora_inside_a_saved_module_and_beside_it(tmp_path):
    lora = samples.linear() | samples.linear("classifier.dense", m=8)
    one = samples.write(tmp_path / "lora", lora)
    two = samples.write(tmp_path / "two", saved("classifier.dense"))
    with pytest.raises(io.AdapterError, match=r"'classifier\.dense'.*replaces it"):
        io.load_peft([one, two], heads="keep")
    out = samples.write(tmp_path / "three", saved("classifier.out_proj"))
    assert len(io.load_peft([one, out], heads="keep").stacks) == 2
    both = samples.write(tmp_path / "both", lora | saved("classifier.dense"))
    with pytest.raises(io.AdapterError, match=r"'classifier\.dense'.*replaces it"):
        io.load_peft([both], heads="keep")


def test_the_base_beside_lora_of_an_embedding_replaces_nothing(tmp_path):
    copy = {f"{START}lm_head.base_layer.weight": samples.random(8, 5)}
    tensors = samples.linear() | samples.linear("lm_head", m=8) | copy
    folders = [samples.write(tmp_path / name, tensors) for name in "ab"]
    assert not io.plan_peft(folders, heads="keep").conflicts


def experts(module="mlp.experts", *, rank=6, shape=()):
    return samples.linear() | {
        f"{START}{module}.lora_A.weight": samples.random(*shape, rank, 5),
        f"{START}{module}.lora_B.weight": samples.random(*shape, 7, rank),
    }


@pytest.mark.parametrize(
    ("module", "config"),
    [
        ("mlp.experts", {"r": 2, "rank_pattern": {"fc": 4}}),
        ("mlp.experts", {"r": 2, "rank_pattern": {"experts": 6, "fc": 4}}),
        ("mlp.experts", {"r": 6, "rank_pattern": {"fc": 4}}),
        ("experts", {"r": 2, "rank_pattern": {"experts": 6, "fc": 4}}),
        ("mlp.experts.down_proj", {"r": 3, "rank_pattern": {"down_proj": 6, "fc": 4}}),
    ],
)
def test_fused_experts_are_named(tmp_path, module, config):
    folder = samples.write(tmp_path / "a", experts(module), **config)
    with pytest.raises(io.AdapterError, match="fused experts") as refused:
        samples.load_one(folder)
    assert f"{module!r}" in str(refused.value)
    assert "rank_pattern" not in str(refused.value)


def test_stacked_experts_are_named(tmp_path):
    folder = samples.write(tmp_path / "a", experts("mlp.experts.up_proj", shape=(3,)))
    with pytest.raises(io.AdapterError, match="fused experts"):
        samples.load_one(folder)


def test_single_experts_are_layers_like_others(tmp_path):
    for place, module in enumerate(("mlp.experts.3.up_proj", "mlp.shared_experts.up")):
        folder = samples.write(
            tmp_path / str(place), experts(module), rank_pattern={"up.*": 6}
        )
        assert samples.load_one(folder).stacks[module].ranks == (6,)


def test_a_rank_of_several_times_r_may_be_that_of_experts(tmp_path):
    folder = samples.write(tmp_path / "a", experts("moe.wi", rank=8))
    says = r"rank 8 .* but 4 .*if it holds 2 fused experts .* cannot be merged; else"
    with pytest.raises(io.AdapterError, match=says):
        samples.load_one(folder)
    odd = samples.write(tmp_path / "b", experts("moe.wi", rank=7))
    with pytest.raises(io.AdapterError, match="unclear; correct r") as refused:
        samples.load_one(odd)
    assert "experts" not in str(refused.value)
