"""Flax models with Hugging Face names, and merged updates for any Flax model."""

from jaxmerge.models.adapt import with_taps, with_updates
from jaxmerge.models.bert import Bert, BertConfig, bert_apply, init_bert
from jaxmerge.models.bert_hub import load_bert, save_bert
from jaxmerge.models.kernels import add_to_params, layer_weights, linear_layers
from jaxmerge.models.linear_head import head_from_hub, head_logits
from jaxmerge.models.llama import (
    Llama,
    LlamaConfig,
    init_llama,
    llama_apply,
    vocabulary_of,
)
from jaxmerge.models.llama_hub import load_llama, save_llama
from jaxmerge.models.rope import Llama3Scaling
from jaxmerge.models.vit import (
    VisionConfig,
    VisionTower,
    init_vision,
    vision_apply,
)
from jaxmerge.models.vit_hub import load_vision, save_vision

__all__ = [
    "Bert",
    "BertConfig",
    "Llama",
    "Llama3Scaling",
    "LlamaConfig",
    "VisionConfig",
    "VisionTower",
    "add_to_params",
    "bert_apply",
    "head_from_hub",
    "head_logits",
    "init_bert",
    "init_llama",
    "init_vision",
    "layer_weights",
    "linear_layers",
    "llama_apply",
    "load_bert",
    "load_llama",
    "load_vision",
    "save_bert",
    "save_llama",
    "save_vision",
    "vision_apply",
    "vocabulary_of",
    "with_taps",
    "with_updates",
]
