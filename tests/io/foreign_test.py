"""Weights and configs of other tools are named, with what to do."""

import json
import re

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io
from jaxmerge.io.foreign import format_of_keys
from jaxmerge.refusals import Option

FORMATS = {
    "LyCORIS": "lora_unet_down_blocks_0_attn1_to_q.hada_w1_a",
    "before PEFT": "model.attentions.0.attn1.to_q.lora.down.weight",
    "layout before PEFT": "layers.0.q_proj.lora_linear_layer.up.weight",
    "XLabs": "double_blocks.0.processor.qkv_lora1.down.weight",
    "ComfyUI": "diffusion_model.layers.0.attention.qkv.lora_A.weight",
    "diffusion trainer": "transformer.single_blocks.0.linear.lora_up.weight",
    "torchtune": "layers.0.attn.q_proj.lora_a.weight",
    "MLX": "model.layers.0.self_attn.q_proj.lora_a",
    "AdapterHub": "bert.encoder.layer.0.query.loras.sst.lora_A",
    "LitGPT": "transformer.h.0.attn.attn.lora_A",
    "NeMo": "model.layers.0.adapter_layer.lora_kqv_adapter.linear_in.weight",
    "Sam_LoRA": "w_a_000",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_without_a_config_is_named(tmp_path, name):
    folder = tmp_path / "a"
    folder.mkdir()
    tensors = {FORMATS[name]: samples.random(4, 4)}
    safetensors.numpy.save_file(tensors, folder / "weights.safetensors")
    with pytest.raises(io.AdapterError, match=re.escape(name)) as refused:
        samples.load_one(folder)
    assert str(folder / "weights.safetensors") in str(refused.value)


IMAGE = {  # read without a config, see image_test.py
    "kohya": "lora_unet_down_blocks_0_attn1_to_q.lora_down.weight",
    "numbered": "unet:12:down",
}


@pytest.mark.parametrize("name", [*IMAGE, "torchtune", "MLX", "before PEFT"])
def test_a_file_beside_a_config_of_peft_is_named_too(tmp_path, name):
    key = {**FORMATS, **IMAGE}[name]
    folder = samples.write(tmp_path / "a", {key: samples.random(4, 4)})
    with pytest.raises(io.AdapterError, match=name):
        samples.load_one(folder)


def test_keys_of_peft_are_of_no_other_format():
    kinds = (samples.linear, samples.conv, samples.embedding)
    keys = [key for kind in kinds for key in kind()]
    bare = [key.removeprefix("base_model.model.") for key in keys]
    head = ["base_model.model.score.weight", "base_model.model.fc.lora_A"]
    assert format_of_keys([*keys, *bare, *head]) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapters.npz", "MLX"),
        ("adapter_0.pt", "torchtune"),
        ("lit_model.pth.lora", "LitGPT"),
        ("pytorch_adapter.bin", "AdapterHub"),
        ("mp_rank_00_model_states.pt", "zero_to_fp32.py"),
        ("__0_0.distcp", "distributed checkpoint"),
        ("model-00001-of-00002.safetensors", "whole model"),
        ("delta.safetensors", "weight deltas"),
        ("model.gguf", "llama.cpp"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_files_of_other_tools_are_named(tmp_path, name, said, config):
    folder = samples.write(tmp_path / "a")
    (folder / samples.SAFE).unlink()
    if not config:
        (folder / samples.CONFIG).unlink()
    (folder / name).write_bytes(b"x")
    with pytest.raises(io.AdapterError, match=said) as refused:
        samples.load_one(folder)
    assert name in str(refused.value)


MLX = {"fine_tune_type": "lora", "num_layers": 2, "model": "mlx-community/x"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            MLX | {"lora_parameters": {"rank": 8, "scale": 2.5, "dropout": 0.0}},
            "MLX.*transposed.*r = 8 and lora_alpha = 20",
        ),
        (MLX, "MLX.*lora_alpha is scale"),
        (MLX | {"fine_tune_type": "dora", "lora_parameters": {}}, "mlx_lm.fuse"),
        ({"model_class": "BertModel", "config": {"r": 8}}, "AdapterHub"),
        ({"swift_type": "LORA", "r": 8, "lora_alpha": 8}, "ms-swift"),
        ({"architectures": ["X"], "hidden_size": 8, "model_type": "x"}, "config.json"),
        ({"r": 8, "lora_alpha": 8}, "no peft_type.*copy adapter_config"),
    ],
)
def test_a_config_that_is_not_of_peft_is_named(tmp_path, config, said):
    folder = samples.write(tmp_path / "a", raw_config=config)
    with pytest.raises(io.AdapterError, match=said):
        samples.load_one(folder)


@pytest.mark.parametrize(
    "numbers", [(10**400, 1.5), (8, 10**400), ("8", []), (8, None)]
)
def test_numbers_of_mlx_are_not_trusted(tmp_path, numbers):
    parameters = dict(zip(("rank", "scale"), numbers, strict=True))
    folder = samples.write(
        tmp_path / "a", raw_config=MLX | {"lora_parameters": parameters}
    )
    with pytest.raises(io.AdapterError, match=r"scale \* rank$"):
        samples.load_one(folder)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"hidden_size": 8, "model_type": "x", "vocab_size": 9}, "transformers"),
        ({"swift_type": "LORA", "lora_dtype": "bf16"}, "ms-swift"),
        ({"sequence_len": 2048, "sample_packing": True}, "axolotl"),
        ({"finetuning_type": "lora", "cutoff_len": 8}, "LLaMA-Factory"),
        ({"max_seq_length": 8, "random_state": 3407}, "unsloth"),
        ({"brand": 1, "new": 2}, "unknown options 'brand', 'new', which"),
    ],
)
def test_all_unknown_options_are_named_at_once(tmp_path, keys, said):
    folder = samples.write(tmp_path / "a", **keys)
    with pytest.raises(io.AdapterError, match=said) as refused:
        samples.load_one(folder)
    assert all(repr(key) in str(refused.value) for key in keys)
    options = [part for part in refused.value.message if isinstance(part, Option)]
    assert [option.values for option in options] == [tuple(keys)]
    assert samples.load_one(folder, ignore_config_keys=list(keys)).stacks


def test_unknown_options_of_two_tools_are_told_apart(tmp_path):
    folder = samples.write(tmp_path / "a", swift_type="LORA", vocab_size=9, odd=1)
    said = "'swift_type' comes from ms-swift, 'vocab_size' comes from transformers"
    with pytest.raises(io.AdapterError, match=said):
        samples.load_one(folder)


@pytest.mark.parametrize("keys", [[f"k{n}" for n in range(5000)], ["x" * 3000]])
def test_the_list_of_unknown_options_is_bounded(tmp_path, keys):
    folder = samples.write(tmp_path / "a", **dict.fromkeys(keys, 1))
    with pytest.raises(io.AdapterError, match="hardly the config") as refused:
        samples.load_one(folder)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", ["lora", "Lora", "PeftType.LORA"])
def test_the_kind_of_an_adapter_may_be_spelled_otherwise(tmp_path, kind):
    folder = samples.write(
        tmp_path / "a", peft_type=kind, task_type="TaskType.CAUSAL_LM"
    )
    (source,) = samples.load_one(folder).sources
    assert source.scales == {"h.0.fc": 2.0}
    assert source.task_type == "CAUSAL_LM"
    assert source.config == json.loads((folder / samples.CONFIG).read_text())


def test_ranks_may_be_whole_floats(tmp_path):
    tensors = samples.linear() | samples.linear("h.1.fc", r=2)
    folder = samples.write(
        tmp_path / "a", tensors, r=4.0, lora_alpha=8.0, rank_pattern={"h.1.fc": 2.0}
    )
    (source,) = samples.load_one(folder).sources
    assert source.scales == {"h.0.fc": 2.0, "h.1.fc": 4.0}
    assert np.isfinite(samples.load_one(folder).stacks["h.1.fc"].b).all()


@pytest.mark.parametrize("rank", [4.5, "4", True, -4.0, 1e300])
def test_other_ranks_are_refused(tmp_path, rank):
    folder = samples.write(tmp_path / "a", r=rank)
    with pytest.raises(io.AdapterError, match="r must be a positive integer"):
        samples.load_one(folder)
