"""Sizes and adapters of tiny models in the place of CLIP and Llama.

`experiment_fixtures` writes their folders.
"""

import json

import numpy as np
from safetensors.numpy import save_file
from tiny_suite import FEW_STEPS

from jaxmerge.models import DecoderConfig, VisionConfig

CLIP = VisionConfig(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
    projection_dim=6,
)
LLAMA = DecoderConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)
CLIP_MODULES = [f"vision_model.encoder.layers.0.self_attn.{p}_proj" for p in "qv"]
SMALL = {"validation": 12, "test": 12, "batch": 4, **FEW_STEPS}


def write_adapter(folder, modules, seed, extra=None):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tensors = dict(extra or {})
    for name in modules:
        for factor, shape in (("A", (2, 8)), ("B", (8, 2))):
            key = f"base_model.model.{name}.lora_{factor}.weight"
            tensors[key] = rng.normal(size=shape).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "tiny",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": sorted({name.split(".")[-1] for name in modules}),
        "modules_to_save": ["score"] if extra else None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def name_places(monkeypatch, folder, places):
    """The environment variables of a config."""
    for name, place in {"ADAPTERS": "adapters", **places}.items():
        monkeypatch.setenv(f"JAXMERGE_{name}", str(folder / place))
