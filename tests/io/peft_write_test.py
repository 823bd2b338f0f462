"""PEFT as second opinion on what is written: it applies the update we meant."""

import copy

import io_samples as samples
import numpy as np
import pytest
from io_peft_net import (
    INPUTS,
    TARGETS,
    deltas,
    forward,
    in_weight_shape,
    patched,
    reloaded,
    safetensors_torch,
    torch,
    train,
)

from jaxmerge import io
from jaxmerge.updates import dense, truncate

pytest_plugins = ["io_fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch and PEFT


@pytest.fixture
def merge(net, tmp_path):
    """Adapters of different ranks, alphas and variants, and their weighted sum."""
    names = ("plain", "rslora", "patterns")
    for seed, name in enumerate(names):
        train(net, tmp_path / name, seed=seed, **INPUTS[name])
    adapters = io.load_peft([tmp_path / name for name in names])
    weights = [0.5, -0.3, 0.8]
    updates = {
        module: samples.concatenated(stack, weights)
        for module, stack in adapters.stacks.items()
    }
    return adapters, updates


WAYS = {
    "default": {},
    "ragged": {"ragged": True},
    "rank": {"rank": 3},
    "auto": {"rank": "auto"},
    "wide": {"rank": 20},
    "energy": {"energy": 0.9},
    "ragged energy": {"energy": 0.9, "ragged": True},
}


@pytest.mark.parametrize("name", WAYS)
def test_peft_applies_exactly_the_update_we_meant(net, merge, tmp_path, name):
    adapters, updates = merge
    report = io.save_peft(tmp_path / "out", updates, like=adapters, **WAYS[name])
    if "rank" in WAYS[name] or "energy" in WAYS[name]:
        one = next(iter(set(report.ranks.values())))
        updates = {
            module: truncate(u, rank=report.ranks[module] if "ragged" in name else one)
            for module, u in updates.items()
        }
    found = forward(reloaded(net, tmp_path / "out"))
    expected = forward(patched(net, adapters, updates))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - forward(net)).max() > 1e-2


def test_every_module_is_reached_by_peft(net, merge, tmp_path):
    adapters, updates = merge
    io.save_peft(tmp_path / "out", updates, like=adapters, ragged=True)
    model = reloaded(net, tmp_path / "out")
    found = deltas(model)
    assert found.keys() == updates.keys() == set(TARGETS)
    for module, delta in found.items():
        expected = np.asarray(dense(updates[module]), np.float64)
        expected = in_weight_shape(adapters.layouts[module], expected, delta.shape)
        np.testing.assert_allclose(delta, expected, rtol=1e-5, atol=1e-6)


def test_dense_updates_truncated_to_full_rank(net, merge, tmp_path):
    adapters, updates = merge
    full = {module: dense(update) for module, update in updates.items()}
    io.save_peft(tmp_path / "out", full, like=adapters, dense="truncate", energy=1.0)
    np.testing.assert_allclose(
        forward(reloaded(net, tmp_path / "out")),
        forward(patched(net, adapters, updates)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "targets", [["turned"], ["fc", "block.fc", "conv", "point", "embed"]]
)
def test_weight_deltas_add_to_the_base_weights(net, tmp_path, targets):
    train(net, tmp_path / "one", seed=1, r=3, target_modules=targets)
    adapters = io.load_peft([tmp_path / "one"])
    full = {
        module: dense(samples.concatenated(stack))
        for module, stack in adapters.stacks.items()
    }
    io.save_peft(tmp_path / "out", full, like=adapters, dense="full")
    model = copy.deepcopy(net)
    found = safetensors_torch.load_file(tmp_path / "out" / "delta.safetensors")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in found:
                value += found.pop(name)
    assert not found
    np.testing.assert_allclose(
        forward(model), forward(patched(net, adapters, full)), rtol=1e-5, atol=1e-5
    )


def test_lora_biases_are_merged_linearly(net, tmp_path):
    config = INPUTS["bias"]
    train(net, tmp_path / "one", seed=1, **config)
    train(net, tmp_path / "two", seed=2, **{**config, "lora_bias": False})
    adapters = io.load_peft([tmp_path / "one", tmp_path / "two"])
    weights = np.float32([0.7, -0.4])
    updates = {
        m: samples.concatenated(stack, weights) for m, stack in adapters.stacks.items()
    }
    with pytest.raises(io.AdapterError, match="biases"):
        io.save_peft(tmp_path / "out", updates, like=adapters)
    biases = {m: weights @ np.asarray(b) for m, b in adapters.biases.items()}
    io.save_peft(tmp_path / "out", updates, like=adapters, biases=biases)
    np.testing.assert_allclose(
        forward(reloaded(net, tmp_path / "out")),
        forward(patched(net, adapters, updates, biases)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("policy", ["first", "mean"])
def test_heads_reach_the_model(net, tmp_path, policy):
    for seed, name in enumerate(("one", "two")):
        model = train(
            net, tmp_path / name, seed=seed, r=2, modules_to_save=["classifier"]
        )
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "classifier.modules_to_save" in key:
                    value += seed + 1
        model.save_pretrained(tmp_path / name)
    adapters = io.load_peft([tmp_path / "one", tmp_path / "two"], heads=policy)
    updates = samples.summed(adapters)
    io.save_peft(tmp_path / "out", updates, like=adapters)
    expected = patched(net, adapters, updates)
    with torch.no_grad():
        for value in expected.classifier.parameters():
            value += 1 if policy == "first" else 1.5
    np.testing.assert_allclose(
        forward(reloaded(net, tmp_path / "out")),
        forward(expected),
        rtol=1e-5,
        atol=1e-4,
    )
