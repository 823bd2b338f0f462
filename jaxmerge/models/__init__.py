"""Flax models with Hugging Face names, and merged updates for any Flax model."""

from jaxmerge.models.adapt import add_to_params, with_taps, with_updates
from jaxmerge.models.vit import (
    VisionConfig,
    VisionTower,
    init_vision,
    load_vision,
    save_vision,
    vision_apply,
)

__all__ = [
    "VisionConfig",
    "VisionTower",
    "add_to_params",
    "init_vision",
    "load_vision",
    "save_vision",
    "vision_apply",
    "with_taps",
    "with_updates",
]
