"""A network with one layer of every kind, trained and reloaded by PEFT."""

import copy
import warnings

import numpy as np
import pytest

from jaxmerge.updates import dense

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    from peft.utils.other import get_pattern_key  # noqa: F401 (for io_peft_read_test)
    from transformers.pytorch_utils import Conv1D


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


def in_weight_shape(layout, update, shape):
    """An update in the shape of the weight; PEFT sees which layers are no Conv1D."""
    change = layout.to_weight(update)
    return change if change.shape == shape else change.T


def patched(net, adapters, updates, biases=None):
    """The plain network with our updates added to its weights by hand."""
    model = copy.deepcopy(net)
    with torch.no_grad():
        for module, update in updates.items():
            layer = model.get_submodule(module)
            change = in_weight_shape(
                adapters.layouts[module], np.asarray(dense(update)), layer.weight.shape
            )
            layer.weight += torch.from_numpy(np.array(change))
        for module, bias in (biases or {}).items():
            model.get_submodule(module).bias += torch.from_numpy(np.array(bias))
    return model


def forward(model):
    with torch.no_grad():
        return model(TOKENS).numpy()


def reloaded(net, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(net), folder).eval()


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
