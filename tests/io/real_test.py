"""Adapters of other people: the good ones load and save, the bad ones explain."""

import json

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io
from jaxmerge.io.tensors import open_tensors

GPT2 = ("legal", "medical", "sports", "tigrinya")
NLI = ("mnli", "qnli", "snli", "rte", "sick", "scitail")


@pytest.fixture
def real(shared):
    if not (shared / "adapters").is_dir():
        pytest.skip(f"no adapters in {shared}")
    return shared / "adapters"


def test_gpt2_domains(real, tmp_path):
    folders = [real / "gpt2_domains" / name for name in GPT2]
    plan = io.plan_peft(folders)
    assert plan.conflicts == ()
    assert (len(plan.modules), plan.rank, plan.max_lora_rank) == (36, 32, 32)
    assert [adapter.scales for adapter in plan.adapters] == [(2.0,)] * 3 + [(4.0,)]
    adapters = io.load_peft(folders)
    assert adapters.names == GPT2
    module = "transformer.h.0.attn.c_attn"
    assert adapters.layouts[module] == io.Layout("linear", fan_in_fan_out=True)
    raw = safetensors.numpy.load_file(folders[3] / "adapter_model.safetensors")
    a = raw[f"base_model.model.{module}.lora_A.weight"]
    b = raw[f"base_model.model.{module}.lora_B.weight"]
    np.testing.assert_allclose(
        samples.update(adapters.stacks[module], 3), samples.product(b, a, 4), atol=1e-7
    )
    check_round_trip(adapters, tmp_path)


def test_medical_and_sports_share_their_first_a(real):
    """A property of the files that a mixed-up reader would lose."""
    names = ("legal", "medical", "sports")
    adapters = io.load_peft([real / "gpt2_domains" / name for name in names])

    def overlap(first, second):
        shares = []
        for stack in adapters.stacks.values():
            q = [np.linalg.qr(np.asarray(stack.a[t]).T)[0] for t in (first, second)]
            shares.append(np.linalg.norm(q[0].T @ q[1]) ** 2 / 8)
        return np.mean(shares)

    assert overlap(1, 2) > 0.9
    assert overlap(0, 1) < 0.1


def test_minilm_with_heads(real, tmp_path):
    folders = [real / "minilm_nli6" / name for name in NLI] + [real / "minilm_sst2_r8"]
    with pytest.raises(io.AdapterError, match="classifier"):
        io.load_peft(folders)
    with pytest.raises(io.AdapterError, match="no mean"):
        io.load_peft(folders, heads="mean")
    adapters = io.load_peft(folders, heads="keep")
    assert {stack.ranks for stack in adapters.stacks.values()} == {(16,) * 6 + (8,)}
    assert [heads["classifier.weight"].shape[0] for heads in adapters.heads] == [
        3, 2, 3, 2, 3, 2, 2
    ]  # fmt: skip
    report = check_round_trip(adapters, tmp_path)
    heads = {name for name in report.files if name.startswith("heads/")}
    assert heads == {f"heads/{name}.safetensors" for name in adapters.names}


def check_round_trip(adapters, tmp_path):
    """Mean of the adapters, saved and read again."""
    tasks = len(adapters.names)
    updates = {
        module: samples.concatenated(stack, [1 / tasks] * tasks)
        for module, stack in adapters.stacks.items()
    }
    report = io.save_peft(tmp_path / "out", updates, like=adapters, card="mean")
    again = io.load_peft([tmp_path / "out"], heads="keep")
    assert again.stacks.keys() == adapters.stacks.keys()
    for module, stack in list(again.stacks.items())[:4]:
        expected = np.mean(
            [samples.update(adapters.stacks[module], t) for t in range(tasks)], axis=0
        )
        np.testing.assert_allclose(
            samples.update(stack), expected, atol=1e-6 * np.abs(expected).max()
        )
    assert again.layouts == adapters.layouts
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == adapters.sources[0].base_model
    return report


BAD = {
    "bad/lfs_pointer": r"adapter_model\.safetensors.*git lfs pull",
    "bad/no_weights": "no weights",
    "bad/not_json": r"adapter_config\.json.*not valid JSON",
    "bad/truncated": r"adapter_model\.safetensors.*not a complete safetensors",
    "bad/two_bytes": "no adapter_config.json",
    "other/dept_cola": "PROMPT_TUNING_LORA",
    "other/dept_sst2": "PROMPT_TUNING_LORA",
    "other/dept_wic": "PROMPT_TUNING_LORA",
    "other/sam_lora": r"no adapter_config\.json.*several weight files",
    "sd15/weapons_catundchat": r"no adapter_config\.json.*weight_file=",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_explain_themselves(real, name):
    for read in (io.load_peft, io.plan_peft):
        with pytest.raises(io.AdapterError, match=BAD[name]) as caught:
            read([real / name])
        assert str(real / name) in str(caught.value)
        assert len(str(caught.value)) < 600


def test_adapters_of_different_models_are_told_apart(real):
    folders = [real / "minilm_sst2_r8", real / "gpt2_domains" / "legal"]
    with pytest.raises(io.AdapterError, match="allow_different_bases"):
        io.load_peft(folders, heads="keep")


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_old_diffusers_layout(real, tmp_path, weights):
    folder = real / "sd15" / "weapons_catundchat"
    with pytest.raises(io.AdapterError, match=r"hold no alpha: pass assume_alpha"):
        io.load_peft([folder], weight_file=weights, layout="diffusers")
    adapters = io.load_peft(
        [folder], weight_file=weights, layout="diffusers", assume_alpha="rank"
    )
    assert len(adapters.stacks) == 128
    assert {stack.ranks for stack in adapters.stacks.values()} == {(4,)}
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    tensors = open_tensors(folder / f"pytorch_lora_weights.{weights}")
    for layer, module in (("to_k", "to_k"), ("to_out", "to_out.0")):
        up, down = (
            tensors.read(f"{attention}.processor.{layer}_lora.{part}.weight")
            for part in ("up", "down")
        )
        np.testing.assert_allclose(
            samples.update(adapters.stacks[f"{attention}.{module}"]),
            samples.product(up, down),
            atol=1e-7,
        )
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    io.save_peft(tmp_path / "out", updates, like=adapters)
    again = io.load_peft([tmp_path / "out"])
    assert again.stacks.keys() == adapters.stacks.keys()


def test_sam_lora_is_refused_for_its_lost_biases(real, tmp_path):
    for rank in (2, 16):
        folder = tmp_path / str(rank)
        folder.mkdir()
        name = f"lora_rank{rank}.safetensors"
        (folder / name).write_bytes((real / "other" / "sam_lora" / name).read_bytes())
        with pytest.raises(io.AdapterError, match="biases"):
            io.load_peft([folder], layout="diffusers", assume_alpha=1)
