"""Flax models with Hugging Face names, and merged updates for any Flax model."""

from jaxmerge.models.adapt import add_to_params, with_taps, with_updates
from jaxmerge.models.bert import (
    Bert,
    BertConfig,
    bert_apply,
    init_bert,
    load_bert,
    save_bert,
)
from jaxmerge.models.heads import head_from_hub, head_logits
from jaxmerge.models.vit import (
    VisionConfig,
    VisionTower,
    init_vision,
    load_vision,
    save_vision,
    vision_apply,
)

__all__ = [
    "Bert",
    "BertConfig",
    "VisionConfig",
    "VisionTower",
    "add_to_params",
    "bert_apply",
    "head_from_hub",
    "head_logits",
    "init_bert",
    "init_vision",
    "load_bert",
    "load_vision",
    "save_bert",
    "save_vision",
    "vision_apply",
    "with_taps",
    "with_updates",
]
