"""CLIP folders of Hugging Face, their vision tower read and written without torch."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.folders import Folder
from jaxmerge.models import hub
from jaxmerge.models.vit import VisionConfig, init_vision


def load_vision(
    folder: Folder,
    *,
    dtype: Any = jnp.float32,
    place: hub.Place = hub.on_one_device,
) -> tuple[VisionConfig, dict[str, Any]]:
    """Reads the vision tower of a Hugging Face CLIP folder.

    Reads CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection checkpoints; the
    text tower of a CLIPModel is left unread.

    Args:
      folder: folder with ``config.json`` and safetensors weights.
      dtype: floating type of the parameters.
      place: puts a parameter, known by its name, on its devices, as `hub.to_flax` does.

    Returns:
      The config and the parameters for `vision_apply`.

    Raises:
      ValueError: another kind of model, an unknown activation, or weights that do not
        fit the config; the message names the folder.
    """
    raw = hub.read_config(folder)
    tensors = hub.open_tensors(folder, keep=_of_vision_tower)
    with hub.naming_folder(folder):
        if "visual_projection.weight" not in tensors:
            raw = raw | {"projection_dim": None}
        if not any(key.startswith("vision_model.") for key in tensors):
            tensors = {f"vision_model.{key}": value for key, value in tensors.items()}
        config = _config_from_hub(raw)
        template = jax.eval_shape(partial(init_vision, config), jax.random.key(0))
        return config, hub.to_flax(tensors, template, dtype=dtype, place=place)


def save_vision(folder: Folder, config: VisionConfig, params: Any) -> None:
    """Writes a vision tower as a folder that transformers and `load_vision` read."""
    projected = config.projection_dim is not None
    name = "CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"
    sizes = {k: v for k, v in dataclasses.asdict(config).items() if v is not None}
    raw = {"architectures": [name], "model_type": "clip_vision_model"} | sizes
    hub.write_folder(folder, raw, hub.from_flax(params))


def _of_vision_tower(key: str) -> bool:
    text = key.startswith(("text_model.", "text_projection.")) or key == "logit_scale"
    return not text and not key.endswith(".position_ids")


def _config_from_hub(raw: dict[str, Any]) -> VisionConfig:
    kind = raw.get("model_type")
    if kind == "clip":
        raw = raw.get("vision_config", {}) | {"projection_dim": raw["projection_dim"]}
    elif kind != "clip_vision_model":
        raise ValueError(f"model_type {kind!r} is not clip or clip_vision_model")
    fields = {field.name for field in dataclasses.fields(VisionConfig)}
    return VisionConfig(**{k: v for k, v in raw.items() if k in fields})
