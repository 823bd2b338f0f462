"""PEFT as second opinion on what is read: its patterns and its deltas."""

import copy

import io_samples as samples
import numpy as np
import pytest
from io_peft_net import (
    INPUTS,
    bias_deltas,
    deltas,
    get_pattern_key,
    in_weight_shape,
    peft,
    torch,
    train,
)

from jaxmerge import io
from jaxmerge.io.pattern_table import PatternTable

pytest_plugins = ["io_fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch and PEFT


@pytest.mark.parametrize("module", ["a.b.fc", "fc", "b.xfc", "q[0].fc", "layers.11.q"])
@pytest.mark.parametrize(
    "patterns",
    [
        ["fc"], ["b.fc", "fc"], ["^fc"], ["^a.*"], ["x", "y"], ["q[0].fc"], [""],
        [r"layers\.1.*", "q"], ["b|q", "fc"], [".*"], [], ["layers.1.q", "1.q"],
    ],
)  # fmt: skip
def test_patterns_match_as_in_peft(module, patterns):
    expected = get_pattern_key(patterns, module)
    found = PatternTable(patterns).first(module)
    assert (module if found is None else found) == expected


def check_updates(adapters, expected):
    for module, delta in expected.items():
        update = samples.update(adapters.stacks[module])
        found = in_weight_shape(adapters.layouts[module], update, delta.shape)
        np.testing.assert_allclose(found, delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", INPUTS)
def test_reader_agrees_with_get_delta_weight(net, tmp_path, name):
    model = train(net, tmp_path / "a", seed=1, **INPUTS[name])
    adapters = io.load_peft([tmp_path / "a"])
    expected = deltas(model)
    assert adapters.stacks.keys() == expected.keys()
    check_updates(adapters, expected)
    biases = bias_deltas(model)
    assert adapters.biases.keys() == biases.keys()
    for module, bias in biases.items():
        np.testing.assert_allclose(adapters.biases[module][0], bias, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reader_agrees_in_half_precision(net, tmp_path, dtype):
    model = train(net, tmp_path / "a", seed=1, r=4)
    model = model.to(dtype)
    model.save_pretrained(tmp_path / "half")
    adapters = io.load_peft([tmp_path / "half"])
    assert adapters.dtype.name == str(dtype).removeprefix("torch.")
    check_updates(adapters, deltas(model.float()))


def test_adalora_with_pruned_ranks(net, tmp_path):
    """Saved after pruning: fewer rows than init_r, but still divided by init_r."""
    model = train(net, tmp_path / "full", seed=1, **INPUTS["adalora"])
    keep = {
        "fc.lora_E": [True, False, True, True, False],
        "block.fc.lora_E": [True] * 5,
        "turned.lora_E": [False, False, True, False, False],
    }
    for layer in ("fc", "block.fc", "turned"):
        e = model.base_model.model.get_submodule(layer).lora_E["default"]
        with torch.no_grad():
            e[~torch.tensor(keep[f"{layer}.lora_E"])] = 0
    model.peft_config["default"].rank_pattern = keep
    model.save_pretrained(tmp_path / "pruned")
    adapters = io.load_peft([tmp_path / "pruned"])
    ranks = {module: stack.ranks for module, stack in adapters.stacks.items()}
    assert ranks == {"fc": (3,), "block.fc": (5,), "turned": (1,)}
    check_updates(adapters, deltas(model))


def test_vera(net, tmp_path):
    torch.manual_seed(1)
    config = peft.VeraConfig(r=4, target_modules=["fc", "block.fc"])
    model = peft.get_peft_model(copy.deepcopy(net), config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "vera_lambda" in name:
                value.copy_(torch.randn_like(value))
    model.save_pretrained(tmp_path / "a")
    adapters = io.load_peft([tmp_path / "a"], vera_inputs={"block.fc": 8, "fc": 6})
    check_updates(adapters, deltas(model))
