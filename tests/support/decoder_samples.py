"""Tiny decoders of every architecture, and texts for them."""

import jax
import numpy as np
import pytest
from models_torch import randomise

transformers = pytest.importorskip("transformers")

SCALED = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0} | {
    "low_freq_factor": 0.2,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}
MODELS = {  # architecture, and what its config says beside DEFAULTS
    "llama": ("Llama", {}),
    "llama with biases": (
        "Llama",
        {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 1}
        | {"head_dim": 6, "attention_bias": True, "mlp_bias": True}
        | {"rope_parameters": SCALED},
    ),
    "smollm": (
        "Llama",
        {"hidden_size": 12, "num_attention_heads": 3, "num_key_value_heads": 3}
        | {"num_hidden_layers": 3, "intermediate_size": 5, "rms_norm_eps": 1e-3}
        | {"tie_word_embeddings": True},
    ),
    "mistral": ("Mistral", {"sliding_window": 4, "head_dim": 6}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 with windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 6, "tie_word_embeddings": True}),
    "qwen3 with windows": (
        "Qwen3",
        {"head_dim": 4, "attention_bias": True, "use_sliding_window": True}
        | {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
DEFAULTS = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "vocab_size": 50,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
TINY = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}


def random_reference(name, kind="ForSequenceClassification"):
    """A model with large weights, so that no layer is near the identity."""
    family, sizes = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**DEFAULTS | sizes, num_labels=3)
    return randomise(getattr(transformers, family + kind)(config), seed=len(name))


def texts_for(config, length=11):
    """Random tokens: one text whole, others padded on the right and on the left."""
    rng = np.random.default_rng(0)
    mask = np.ones((4, length), np.int32)
    mask[1, 5:] = mask[2, 1:] = mask[3, :4] = 0
    ids = rng.integers(1, config.vocab_size, mask.shape, np.int32)
    return {"input_ids": ids * mask, "attention_mask": mask}


def mixed_dtypes():
    """Lets jax.nn.dot_product_attention go from bf16 to float32 by itself."""
    return jax.numpy_dtype_promotion("standard")
