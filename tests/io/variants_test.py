"""AdaLoRA and VeRA are read; variants of another meaning are refused by name."""

import io_samples as samples
import numpy as np
import pytest

from jaxmerge import io


def adalora(rank=3, m=6, n=5):
    start = "base_model.model.h.0.fc."
    return {
        f"{start}lora_A": samples.random(rank, n, seed=1),
        f"{start}lora_B": samples.random(m, rank, seed=2),
        f"{start}lora_E": samples.random(rank, 1, seed=3),
    }


ADALORA = {"peft_type": "ADALORA", "r": 8, "init_r": 12, "target_r": 4, "total_step": 9}


def test_adalora_divides_by_the_initial_rank(tmp_path):
    tensors = adalora()
    kept = {"h.0.fc.lora_E": [True] * 3 + [False] * 9}
    folder = samples.write(tmp_path / "a", tensors, **ADALORA, rank_pattern=kept)
    adapters = samples.load_one(folder)
    stack, scale = adapters.stacks["h.0.fc"], adapters.sources[0].scales["h.0.fc"]
    assert scale == pytest.approx(8 / (12 + 1e-5), rel=1e-12)
    a, b, e = (x.astype(np.float64) for x in tensors.values())
    assert stack.ranks == (3,)
    samples.close(samples.update(stack), 8 / (12 + 1e-5) * b @ (e * a))


def test_adalora_rank_must_be_explained(tmp_path):
    folder = samples.write(tmp_path / "a", adalora(), **ADALORA)
    with pytest.raises(io.AdapterError, match="rank 3 in its tensors but 12"):
        samples.load_one(folder)
    full = samples.write(tmp_path / "b", adalora(12), **ADALORA)
    assert samples.load_one(full).stacks["h.0.fc"].ranks == (12,)


def test_adalora_module_pruned_to_rank_zero_is_absent(tmp_path):
    tensors = adalora(0) | samples.linear("h.1.fc", seed=4)
    tensors |= {
        key.replace(".weight", ""): tensors.pop(key)
        for key in list(tensors)
        if key.endswith(".weight")
    }
    tensors["base_model.model.h.1.fc.lora_E"] = samples.random(4, 1)
    kept = {"h.0.fc.lora_E": [False] * 12, "h.1.fc.lora_E": [True] * 4 + [False] * 8}
    folder = samples.write(tmp_path / "a", tensors, **ADALORA, rank_pattern=kept)
    adapters = samples.load_one(folder)
    assert list(adapters.stacks) == ["h.1.fc"]
    assert adapters.sources[0].zero_modules == ("h.0.fc",)


VERA = {"peft_type": "VERA", "r": 4, "projection_prng_key": 0, "save_projection": True}


def vera(modules=("h.0.fc",), m=6, n=5):
    tensors = {
        "base_model.vera_A": samples.random(4, n + 2, seed=1),
        "base_model.vera_B": samples.random(m + 3, 4, seed=2),
    }
    for seed, module in enumerate(modules):
        start = f"base_model.model.{module}.vera_lambda_"
        tensors[f"{start}b"] = samples.random(m, seed=3 + seed)
        tensors[f"{start}d"] = samples.random(4, seed=9 + seed)
    return tensors


def test_vera_is_scaled_shared_projections(tmp_path):
    tensors = vera(("h.0.fc", "h.1.fc"))
    folder = samples.write(tmp_path / "a", tensors, **VERA)
    with pytest.raises(io.AdapterError, match=r"vera_inputs=\{'fc': SIZE\}"):
        samples.load_one(folder)
    for inputs in (5, {"fc": 5}, {"fc": 7, "0.fc": 5, "h.1.fc": 5}):
        stacks = samples.load_one(folder, vera_inputs=inputs).stacks
        for module in ("h.0.fc", "h.1.fc"):
            start = f"base_model.model.{module}.vera_lambda_"
            expected = (
                tensors[f"{start}b"][:, None] * tensors["base_model.vera_B"][:6]
            ) @ (tensors[f"{start}d"][:, None] * tensors["base_model.vera_A"][:, :5])
            samples.close(samples.update(stacks[module]), expected)


def test_vera_of_one_module_tells_its_own_input_size(tmp_path):
    folder = samples.write(tmp_path / "a", vera(), **VERA)
    assert samples.load_one(folder).stacks["h.0.fc"].a.shape == (1, 4, 7)


def test_vera_without_projections_is_refused(tmp_path):
    tensors = {key: x for key, x in vera().items() if "vera_A" not in key}
    with pytest.raises(io.AdapterError, match="save_projection=True"):
        samples.load_one(samples.write(tmp_path / "a", tensors, **VERA))


REFUSED = [
    ({"peft_type": "LOHA"}, "LOHA"),
    ({"peft_type": None}, "peft_type"),
    ({"use_dora": True}, "DoRA"),
    ({"init_lora_weights": "pissa_niter_16"}, "PiSSA"),
    ({"init_lora_weights": "olora"}, "OLoRA"),
    ({"init_lora_weights": "corda"}, "CorDA"),
    ({"init_lora_weights": "loftq"}, "LoftQ"),
    ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
    ({"init_lora_weights": "unheard_of"}, "unheard_of"),
    ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
    ({"megatron_config": {"tensor_model_parallel_size": 2}}, "megatron_config"),
    ({"use_qalora": True}, "use_qalora"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
    ({"monteclora_config": {"num_samples": 8}}, "monteclora_config"),
    ({"arrow_config": {"top_k": 3}}, "arrow_config"),
    ({"alora_invocation_tokens": [1, 2]}, "alora"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "3-D experts"),
    ({"trainable_token_indices": [7]}, "trainable_token_indices"),
    ({"enable_lora": [True, False, True]}, "enable_lora"),
    ({"bias": "lora_only"}, "bias"),
    ({"brand_new_option": 3}, "brand_new_option"),
]
HARMLESS = {
    "brand_new_option": None, "another": False, "third": [], "fourth": {}, "fifth": "",
    "eva_config": {"rho": 2.0}, "velora_config": {"num_groups": 2},
    "init_lora_weights": "gaussian", "peft_version": "9.9", "lora_dropout": 0.1,
    "megatron_core": "megatron.core", "qalora_group_size": 16, "loftq_config": {},
    "layers_to_transform": [0, 1], "layers_pattern": "h", "exclude_modules": ["x"],
    "use_dora": False, "target_parameters": [], "arrow_config": None,
}  # fmt: skip


@pytest.mark.parametrize(("config", "named"), REFUSED)
def test_what_changes_the_meaning_is_refused_by_name(tmp_path, config, named):
    folder = samples.write(tmp_path / "a", **config)
    with pytest.raises(io.AdapterError, match=named) as caught:
        samples.load_one(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(io.AdapterError, match=named):
        io.plan_peft([folder])


def test_what_is_harmless_is_accepted(tmp_path):
    adapters = samples.load_one(samples.write(tmp_path / "a", **HARMLESS))
    assert adapters.sources[0].scales == {"h.0.fc": 2.0}
    folder = samples.write(tmp_path / "b", brand_new_option=3)
    assert samples.load_one(folder, ignore_config_keys=["brand_new_option"]).stacks


@pytest.mark.parametrize(
    ("leaf", "named"),
    [
        ("h.0.fc.lora_magnitude_vector", "DoRA"),
        ("h.0.fc.lora_magnitude_vector.default.weight", "DoRA"),
        ("h.0.fc.lora_diag", "KaSA"),
        ("embed.token_adapter.trainable_tokens_delta", "embedding rows"),
        ("experts.base_layer.lora_A.weight", "3-D experts"),
    ],
)
def test_tensors_of_variants_are_refused(tmp_path, leaf, named):
    tensors = samples.linear() | {f"base_model.model.{leaf}": samples.random(6)}
    with pytest.raises(io.AdapterError, match=named):
        samples.load_one(samples.write(tmp_path / "a", tensors))
