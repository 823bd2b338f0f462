"""Small LoRA files of image models, written with numpy alone."""

import json
from pathlib import Path

import io_samples as samples
import numpy as np
import safetensors.numpy

FORMS = {  # of a diffusers file: names of A and B below a module
    "peft": ("lora_A.weight", "lora_B.weight"),
    "lora": ("lora.down.weight", "lora.up.weight"),
    "linear": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
}
UNET = "down_blocks.1.attentions.0.transformer_blocks.0"
TO_Q, TO_K = f"unet.{UNET}.attn1.to_q", f"unet.{UNET}.attn2.to_k"
CONV = "unet.down_blocks.1.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
KOHYA = {  # of Stable Diffusion 1
    name: "lora_unet_" + name.removeprefix("unet.").replace(".", "_")
    for name in (TO_Q, TO_K, CONV)
} | {TEXT: "lora_te_" + TEXT.partition(".")[2].replace(".", "_")}


def factors(*, m=6, n=768, r=3, kernel=(), seed=0):
    """B and A as tensors, A of a convolution with its kernel."""
    ones = (1,) * len(kernel)
    b = samples.random(m, r, *ones, seed=seed)
    return b, samples.random(r, n, *kernel, seed=seed + 1)


def pairs(seed=0, r=3):
    """module of diffusers -> its factors, for the modules of `KOHYA`."""
    return {
        TO_Q: factors(n=5, r=r, seed=seed),
        TO_K: factors(r=r, seed=seed + 2),
        CONV: factors(n=4, kernel=(3, 3), r=r + 1, seed=seed + 4),
        TEXT: factors(m=5, n=5, r=r, seed=seed + 6),
    }


def update(b, a, scale=1.0):
    """scale B A, a matrix."""
    return samples.product(b.reshape(len(b), -1), a.reshape(len(a), -1), scale)


def write_kohya(path: Path, found, alphas=None) -> Path:
    """A kohya file; modules without an alpha in the table get none."""
    tensors = {}
    for module, (b, a) in found.items():
        name = KOHYA.get(module, module)
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
        if alphas and module in alphas:
            tensors[f"{name}.alpha"] = np.asarray(alphas[module], np.float32)
    return save(path, tensors)


def write_diffusers(path: Path, found, form="peft", *, alphas=None, configs=None):
    a_name, b_name = FORMS[form]
    tensors = {}
    for module, (b, a) in found.items():
        tensors |= {f"{module}.{a_name}": a, f"{module}.{b_name}": b}
    for module, alpha in (alphas or {}).items():
        tensors[f"{module}.alpha"] = np.asarray(alpha, np.float32)
    return save(path, tensors, {"lora_adapter_metadata": json.dumps(configs)})


def save(path: Path, tensors, header=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {k: v for k, v in (header or {}).items() if v != "null"}
    safetensors.numpy.save_file(tensors, path, metadata=said)
    return path


def read_updates(path: Path) -> dict[str, np.ndarray]:
    """module -> update of a file as its loaders scale it, read without jaxmerge."""
    tensors = safetensors.numpy.load_file(path)
    names = {
        ".lora_down.weight": ".lora_up.weight",
        ".lora_A.weight": ".lora_B.weight",
        ":down": ":up",
    }
    found = {}
    for key, a in tensors.items():
        end = next((end for end in names if key.endswith(end)), None)
        if end is not None:
            module = key.removesuffix(end)
            alpha = float(tensors.get(f"{module}.alpha", np.asarray(len(a))))
            found[module] = update(tensors[module + names[end]], a, alpha / len(a))
    return found
