"""Llama folders of Hugging Face, read and written without torch."""

import dataclasses
from functools import partial
from typing import Any

import jax

from jaxmerge.folders import Folder
from jaxmerge.models import hub
from jaxmerge.models.llama import LM_HEAD, LlamaConfig, init_llama
from jaxmerge.models.rope import Llama3Scaling

HEADS = ("lm_head.", "score.")  # layers after the decoder, left unread


def load_llama(
    folder: Folder, *, dtype: Any = None, vocabulary: bool = False
) -> tuple[LlamaConfig, dict[str, Any]]:
    """Reads the decoder of a Hugging Face Llama folder, of one file or many.

    Reads LlamaModel and LlamaFor... checkpoints, whose heads are left unread unless
    asked for.

    Args:
      folder: folder with ``config.json`` and safetensors weights.
      dtype: floating type of the parameters; None keeps the stored one.
      vocabulary: read ``lm_head`` too, unless it is tied to the embeddings, for
        `vocabulary_of`.

    Returns:
      The config and the parameters for `llama_apply`.

    Raises:
      ValueError: another kind of model, a Llama with features that are not computed
        here, or weights that do not fit the config; the message names the folder.
    """
    raw = hub.read_config(folder)
    own_head = vocabulary and not raw.get("tie_word_embeddings", False)

    def is_read(key: str) -> bool:
        return _of_decoder(key) or (own_head and key == f"{LM_HEAD}.weight")

    tensors = hub.read_tensors(folder, keep=is_read)
    try:
        config = _config_from_hub(raw)
        tensors = {
            key if key.startswith(("model.", f"{LM_HEAD}.")) else f"model.{key}": value
            for key, value in tensors.items()
        }
        template = jax.eval_shape(partial(init_llama, config), jax.random.key(0))
        if own_head:
            template[LM_HEAD] = dict(template["model"]["embed_tokens"])
        return config, hub.to_flax(tensors, template, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def save_llama(folder: Folder, config: LlamaConfig, params: Any) -> None:
    """Writes a decoder as a folder that LlamaModel and `load_llama` read."""
    raw = {"architectures": ["LlamaModel"], "model_type": "llama"}
    raw |= dataclasses.asdict(config)
    if config.rope_scaling is not None:
        raw["rope_scaling"] |= {"rope_type": "llama3"}
    hub.write_folder(folder, raw, hub.from_flax(params["model"]))


def _of_decoder(key: str) -> bool:
    return not key.startswith(HEADS) and not key.endswith(".rotary_emb.inv_freq")


def _config_from_hub(raw: dict[str, Any]) -> LlamaConfig:
    if raw.get("model_type") != "llama":
        raise ValueError(f"model_type {raw.get('model_type')!r} is not llama")
    hub.refuse_others(raw, {"hidden_act": "silu", "quantization_config": None})
    fields = {field.name for field in dataclasses.fields(LlamaConfig)}
    sizes = {k: v for k, v in raw.items() if k in fields}
    rope = _rope(raw)
    return LlamaConfig(
        **sizes | {"rope_theta": rope["rope_theta"], "rope_scaling": _scaling(rope)}
    )


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """``rope_parameters``, or the older ``rope_scaling`` and what lay beside it."""
    beside = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    rope = {"rope_theta": 10000.0}
    rope |= {name: raw[name] for name in beside if raw.get(name) is not None}
    return rope | (raw.get("rope_scaling") or {}) | (raw.get("rope_parameters") or {})


def _scaling(rope: dict[str, Any]) -> Llama3Scaling | None:
    hub.refuse_others(rope, {"partial_rotary_factor": 1.0})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r} is not one of default, llama3")
    names = [field.name for field in dataclasses.fields(Llama3Scaling)]
    missing = [name for name in names if name not in rope]
    if missing:
        raise ValueError(f"rope_type 'llama3' lacks {', '.join(missing)}")
    return Llama3Scaling(**{name: rope[name] for name in names})
