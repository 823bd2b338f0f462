"""Small adapters for the tests of jaxmerge.io, written with numpy alone."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from jaxmerge.types import LowRank

BASE = {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": "org/base",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["fc"],
}


def random(*shape, seed=0, dtype=np.float32):
    values = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return values.astype(np.float32).astype(dtype)


def linear(module="h.0.fc", *, m=6, n=5, r=4, seed=0, dtype=np.float32, bias=False):
    """Tensors of one linear module, by key."""
    start = f"base_model.model.{module}."
    tensors = {
        f"{start}lora_A.weight": random(r, n, seed=seed, dtype=dtype),
        f"{start}lora_B.weight": random(m, r, seed=seed + 1, dtype=dtype),
    }
    if bias:
        tensors[f"{start}lora_B.bias"] = random(m, seed=seed + 2, dtype=dtype)
    return tensors


def conv(module="h.0.conv", *, m=6, channels=3, kernel=(3, 3), r=4, seed=0):
    start = f"base_model.model.{module}."
    ones = (1,) * len(kernel)
    return {
        f"{start}lora_A.weight": random(r, channels, *kernel, seed=seed),
        f"{start}lora_B.weight": random(m, r, *ones, seed=seed + 1),
    }


def embedding(module="h.embed", *, vocabulary=11, dim=6, r=4, seed=0):
    start = f"base_model.model.{module}."
    return {
        f"{start}lora_embedding_A": random(r, vocabulary, seed=seed),
        f"{start}lora_embedding_B": random(dim, r, seed=seed + 1),
    }


def write(folder: Path, tensors=None, *, raw_config=None, **config) -> Path:
    """Writes an adapter folder; ``config`` overrides `BASE`, None removes nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {**BASE, **config} if raw_config is None else raw_config
    (folder / "adapter_config.json").write_text(json.dumps(values))
    safetensors.numpy.save_file(
        linear() if tensors is None else tensors, folder / "adapter_model.safetensors"
    )
    return folder


def update(stack, task=0) -> np.ndarray:
    """The dense update of one task, in float64."""
    return np.asarray(stack.b[task], np.float64) @ np.asarray(stack.a[task], np.float64)


def product(b, a, scale=1.0) -> np.ndarray:
    return scale * (np.asarray(b, np.float64) @ np.asarray(a, np.float64))


def concatenated(stack, weights=None) -> LowRank:
    """The weighted sum of the tasks as concatenated factors, with numpy."""
    weights = np.ones(len(stack.ranks)) if weights is None else np.asarray(weights)
    tasks = stack.present
    bs = [weights[t] * np.asarray(stack.b[t])[:, : stack.ranks[t]] for t in tasks]
    as_ = [np.asarray(stack.a[t])[: stack.ranks[t]] for t in tasks]
    return LowRank(
        b=np.concatenate(bs, 1).astype(np.float32),
        a=np.concatenate(as_).astype(np.float32),
    )
