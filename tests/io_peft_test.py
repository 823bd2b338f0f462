"""PEFT as second opinion: it reads what we write, and agrees on what we read."""

import copy
import warnings

import io_samples as samples
import numpy as np
import pytest

from jaxmerge import io
from jaxmerge.io.config import matching_pattern
from jaxmerge.types import LowRank
from jaxmerge.updates import dense, truncate

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    from peft.utils.other import get_pattern_key
    from transformers.pytorch_utils import Conv1D

pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch and PEFT

TARGETS = ["fc", "block.fc", "turned", "conv", "point", "embed"]


class Net(torch.nn.Module):
    """One layer of every kind that LoRA adapts."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.fc = torch.nn.Linear(6, 8)
        self.block = torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 12)})
        self.turned = Conv1D(10, 12)
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.point = torch.nn.Conv2d(4, 5, 1)
        self.classifier = torch.nn.Linear(50, 3)
        self.config = {"model_type": "net"}

    def forward(self, tokens):
        x = self.fc(self.embed(tokens)).tanh()
        x = self.turned(self.block["fc"](x).tanh()).tanh()
        x = self.point(self.conv(x[:, None]).tanh()).mean(2)
        return self.classifier(x.flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


TOKENS = torch.arange(14).reshape(2, 7) % 11


def train(net, folder, *, seed, **config):
    """A PEFT adapter with random factors, saved by PEFT; returns its wrapped model."""
    torch.manual_seed(seed)
    kind = config.pop("kind", peft.LoraConfig)
    config = {"target_modules": TARGETS, "init_lora_weights": False, **config}
    if kind is peft.AdaLoraConfig:
        del config["init_lora_weights"]
    model = peft.get_peft_model(copy.deepcopy(net), kind(**config)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name or "vera_lambda" in name:
                value.copy_(torch.randn_like(value) * 0.3)
    model.save_pretrained(folder)
    return model


def deltas(model):
    """What PEFT adds to every weight, by module, in the shape of the weight."""
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default")
        .detach()
        .numpy()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def bias_deltas(model):
    return {
        name.removeprefix("base_model.model."): (
            layer.lora_B["default"].bias * layer.scaling["default"]
        )
        .detach()
        .numpy()
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_bias") and layer.lora_bias.get("default")
    }


def patched(net, adapters, updates, biases=None):
    """The plain network with our updates added to its weights by hand."""
    model = copy.deepcopy(net)
    with torch.no_grad():
        for module, update in updates.items():
            layer = model.get_submodule(module)
            change = adapters.layouts[module].to_weight(np.asarray(dense(update)))
            if layer.weight.shape != change.shape:  # PEFT sees that it is no Conv1D
                change = change.T
            layer.weight += torch.from_numpy(np.array(change))
        for module, bias in (biases or {}).items():
            model.get_submodule(module).bias += torch.from_numpy(np.array(bias))
    return model


def forward(model):
    with torch.no_grad():
        return model(TOKENS).numpy()


def reloaded(net, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(net), folder).eval()


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
    assert matching_pattern(patterns, module) == expected


INPUTS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "other rank and alpha": {"r": 2, "lora_alpha": 3},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"block.fc": 2, "^fc": 3, "conv|point": 1},
        "alpha_pattern": {"fc": 5, "turned": 16},
    },
    "patterns with rslora": {
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {r"block\..*": 2},
        "alpha_pattern": {"block.fc": 3},
    },
    "bias": {
        "r": 4,
        "lora_bias": True,
        "target_modules": ["fc", "turned", "conv", "point"],
    },
    "adalora": {
        "kind": peft.AdaLoraConfig,
        "init_r": 5,
        "target_r": 2,
        "lora_alpha": 7,
        "total_step": 10,
        "target_modules": ["fc", "block.fc", "turned"],
    },
}


@pytest.mark.parametrize("name", INPUTS)
def test_reader_agrees_with_get_delta_weight(net, tmp_path, name):
    model = train(net, tmp_path / "a", seed=1, **INPUTS[name])
    adapters = io.load_peft([tmp_path / "a"])
    expected = deltas(model)
    assert adapters.stacks.keys() == expected.keys()
    for module, delta in expected.items():
        update = samples.update(adapters.stacks[module])
        found = adapters.layouts[module].to_weight(update)
        found = found if found.shape == delta.shape else found.T
        np.testing.assert_allclose(found, delta, rtol=1e-5, atol=1e-6)
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
    for module, delta in deltas(model.float()).items():
        update = samples.update(adapters.stacks[module])
        found = adapters.layouts[module].to_weight(update)
        found = found if found.shape == delta.shape else found.T
        np.testing.assert_allclose(found, delta, rtol=1e-5, atol=1e-6)


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
    for module, delta in deltas(model).items():
        found = adapters.layouts[module].to_weight(
            samples.update(adapters.stacks[module])
        )
        found = found if found.shape == delta.shape else found.T
        np.testing.assert_allclose(found, delta, rtol=1e-5, atol=1e-6)


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
    for module, delta in deltas(model).items():
        np.testing.assert_allclose(
            samples.update(adapters.stacks[module]), delta, rtol=1e-5, atol=1e-6
        )


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
        expected = adapters.layouts[module].to_weight(expected)
        expected = expected if expected.shape == delta.shape else expected.T
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
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
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


def test_embedding_matrix_saved_beside_its_lora(net, tmp_path):
    """PEFT saves targeted or resized embeddings in full; they travel as heads."""
    train(net, tmp_path / "in", seed=1, r=2, target_modules=["embed", "fc"])
    path = tmp_path / "in" / "adapter_model.safetensors"
    tensors = safetensors_torch.load_file(path)
    matrix = torch.full((11, 6), 0.5)
    tensors["base_model.model.embed.base_layer.weight"] = matrix
    safetensors_torch.save_file(tensors, path)
    adapters = io.load_peft([tmp_path / "in"], heads="first")
    assert list(adapters.heads[0]) == ["embed.base_layer.weight"]
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    io.save_peft(tmp_path / "out", updates, like=adapters)
    config = (tmp_path / "out" / "adapter_config.json").read_text()
    assert "modules_to_save" not in config
    changed = copy.deepcopy(net)
    with torch.no_grad():
        changed.embed.weight.copy_(matrix)
    np.testing.assert_allclose(
        forward(reloaded(net, tmp_path / "out")),
        forward(patched(changed, adapters, updates)),
        rtol=1e-5,
        atol=1e-5,
    )


LINEAR = ["fc", "block.fc", "turned"]


def combined(net, folders, weights, **how):
    """PEFT's own merge of saved adapters."""
    model = peft.PeftModel.from_pretrained(copy.deepcopy(net), folders[0], "t0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, f"t{number}")
    names = [f"t{number}" for number in range(len(folders))]
    model.add_weighted_adapter(names, weights, "default", **how)
    model.set_adapter("default")
    return model.eval()


def test_cat_and_svd_of_peft_agree(net, tmp_path):
    """With alpha = r and with alpha != r; every kind that PEFT combines."""
    configs = [{"r": 4, "lora_alpha": 8}, {"r": 2, "lora_alpha": 3}]
    for seed, config in enumerate(configs):
        train(net, tmp_path / str(seed), seed=seed, target_modules=LINEAR, **config)
    folders, weights = [tmp_path / "0", tmp_path / "1"], [0.6, 0.9]
    adapters = io.load_peft(folders)
    updates = {m: samples.concatenated(s, weights) for m, s in adapters.stacks.items()}
    for how, rank in (("cat", None), ("svd", 3)):
        rank_option = {"svd_rank": rank} if rank else {}
        model = combined(net, folders, weights, combination_type=how, **rank_option)
        for module, delta in deltas(model).items():
            ours = (
                updates[module]
                if rank is None
                else truncate(updates[module], rank=rank)
            )
            ours = adapters.layouts[module].to_weight(np.asarray(dense(ours)))
            ours = ours if ours.shape == delta.shape else ours.T
            np.testing.assert_allclose(delta, ours, rtol=1e-4, atol=1e-5)


def test_single_adapter_survives_unchanged(net, tmp_path):
    """Reading an adapter and writing it back keeps what the model computes."""
    for name, config in INPUTS.items():
        model = train(net, tmp_path / name, seed=3, **config)
        adapters = io.load_peft([tmp_path / name])
        updates = {
            m: LowRank(b=stack.b[0], a=stack.a[0])
            for m, stack in adapters.stacks.items()
        }
        biases = {m: b[0] for m, b in adapters.biases.items()}
        out = tmp_path / f"{name} again"
        io.save_peft(out, updates, like=adapters, biases=biases)
        np.testing.assert_allclose(
            forward(reloaded(net, out)), forward(model), rtol=1e-5, atol=1e-5
        )


class Attention(torch.nn.Module):
    """Torch's own attention, whose output projection PEFT nests in a base layer."""

    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens):
        x = torch.nn.functional.one_hot(tokens % 8, 8).float()
        return self.attention(x, x, x)[0]


def test_multihead_attention(tmp_path):
    torch.manual_seed(0)
    plain = Attention().eval()
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["attention"]}
    model = train(plain, tmp_path / "in", seed=1, **config)
    adapters = io.load_peft([tmp_path / "in"])
    assert sorted(adapters.stacks) == ["attention", "attention.base_layer.out_proj"]
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    io.save_peft(tmp_path / "out", updates, like=adapters)
    found = forward(reloaded(plain, tmp_path / "out"))
    np.testing.assert_allclose(found, forward(model), rtol=1e-5, atol=1e-6)
    assert np.abs(found - forward(plain)).max() > 1e-2
