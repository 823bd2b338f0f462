"""Folders of Llama, Mistral, Qwen2 and Qwen3, read and written without torch."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.folders import Folder
from jaxmerge.models import hub
from jaxmerge.models.decoder import LM_HEAD, init_decoder
from jaxmerge.models.decoder_config import FULL, SLIDING, DecoderConfig
from jaxmerge.models.rope import Llama3Scaling

Raw = Mapping[str, Any]
_HEAD, _WORDS = f"{LM_HEAD}.weight", "model.embed_tokens.weight"
_SCORE = "score."  # the head of classifiers, left unread


class _Architecture(NamedTuple):
    """A ``model_type``: what its config leaves out, and what it says in its own way.

    Attributes:
      family: how the names of its classes in transformers begin.
      defaults: what transformers takes where ``config.json`` says nothing.
      variants: fields of `DecoderConfig` that are not sizes.
      keys: entries of ``config.json`` that ``variants`` reads.
    """

    family: str
    defaults: Raw
    variants: Callable[[Raw], dict[str, Any]]
    keys: tuple[str, ...]


def _llama(raw: Raw) -> dict[str, Any]:
    biased = raw.get("attention_bias", False)
    mlp_bias = raw.get("mlp_bias", False)
    return {"attention_bias": biased, "output_bias": biased, "mlp_bias": mlp_bias}


def _mistral(raw: Raw) -> dict[str, Any]:
    return {"sliding_window": raw["sliding_window"]}


def _qwen2(raw: Raw) -> dict[str, Any]:
    return {"attention_bias": True} | _later_layers(raw)


def _qwen3(raw: Raw) -> dict[str, Any]:
    biased = raw.get("attention_bias", False)
    biases = {"attention_bias": biased, "output_bias": biased}
    return {"head_norm": True} | biases | _later_layers(raw)


def _later_layers(raw: Raw) -> dict[str, Any]:
    """The window of Qwen's layers from ``max_window_layers`` on, where it is in use."""
    window = raw["sliding_window"] if raw.get("use_sliding_window") else None
    types = raw.get("layer_types")
    if types is None and window is not None:
        first = raw["max_window_layers"]
        layers = range(raw["num_hidden_layers"])
        types = [SLIDING if layer >= first else FULL for layer in layers]
    return {"sliding_window": window, "layer_types": types and tuple(types)}


_QWEN = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_WINDOW = ("use_sliding_window", "sliding_window", "layer_types")
ARCHITECTURES = {
    "llama": _Architecture(
        "Llama",
        {"max_position_embeddings": 2048},
        _llama,
        ("attention_bias", "mlp_bias"),
    ),
    "mistral": _Architecture(
        "Mistral",
        {"max_position_embeddings": 131072, "num_key_value_heads": 8}
        | {"sliding_window": 4096},
        _mistral,
        ("sliding_window",),
    ),
    "qwen2": _Architecture("Qwen2", _QWEN, _qwen2, _WINDOW),
    "qwen3": _Architecture(
        "Qwen3", _QWEN | {"head_dim": 128}, _qwen3, ("attention_bias", *_WINDOW)
    ),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "pad_token_id",
)


def load_decoder(
    folder: Folder, *, head: bool = False, dtype: Any = None
) -> tuple[DecoderConfig, dict[str, Any]]:
    """Reads the decoder of a Hugging Face folder, of one file or many.

    Reads the ``...Model`` and ``...For...`` checkpoints of Llama, Mistral, Qwen2 and
    Qwen3.

    Args:
      folder: folder with ``config.json`` and safetensors weights.
      head: read the output layer of the language model too, for `vocabulary_head`. It
        is ``lm_head`` in the parameters, unless it is tied to the embeddings. All other
        heads are left unread.
      dtype: floating type of the parameters; None keeps the stored one.

    Returns:
      The config and the parameters for `decoder_apply`.

    Raises:
      ValueError: another kind of model, features that are not computed here, weights
        that do not fit the config, or no output layer; the message names the folder.
    """
    raw = hub.read_config(folder)
    try:
        config = config_from_hub(raw)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    tensors = hub.read_tensors(folder, keep=partial(_wanted, head=head))
    try:
        tensors = {_full_name(key): value for key, value in tensors.items()}
        if head:
            _check_head(config, tensors)
        template = jax.eval_shape(
            partial(init_decoder, config, head=head), jax.random.key(0)
        )
        return config, hub.to_flax(tensors, template, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def save_decoder(folder: Folder, config: DecoderConfig, params: Any) -> None:
    """Writes a decoder as a folder that transformers and `load_decoder` read.

    Its ``model_type`` is the first that computes what the config says. Parameters with
    an ``lm_head`` are written as a language model, others as the decoder alone.

    Raises:
      ValueError: no kind of model of transformers has these variants together.
    """
    raw = _config_to_hub(config)
    language = LM_HEAD in params
    family = ARCHITECTURES[raw["model_type"]].family
    kind = family + ("ForCausalLM" if language else "Model")
    tensors = hub.from_flax(params if language else params["model"])
    hub.write_folder(folder, {"architectures": [kind]} | raw, tensors)


def config_from_hub(raw: Raw) -> DecoderConfig:
    """What ``config.json`` says, with transformers' defaults where it says nothing.

    Raises:
      ValueError: another kind of model, or something that is not computed here.
    """
    name = raw.get("model_type")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"model_type {name!r} is not one of {known}")
    hub.refuse_others(raw, {"hidden_act": "silu", "quantization_config": None})
    missing = [size for size in _SIZES if raw.get(size) is None]
    if missing:
        raise ValueError(f"{hub.CONFIG} lacks {', '.join(missing)}")
    architecture = ARCHITECTURES[name]
    defaults = {"rms_norm_eps": 1e-6} | dict(architecture.defaults)
    full = defaults | dict(raw)
    rope = _rope(raw)
    sizes = {key: full[key] for key in (*_SIZES, *_OPTIONAL) if key in full}
    return DecoderConfig(
        **sizes,
        **architecture.variants(full),
        rope_theta=rope["rope_theta"],
        rope_scaling=_scaling(rope),
    )


def _config_to_hub(config: DecoderConfig) -> dict[str, Any]:
    """The entries of ``config.json`` that are read back as the same config."""
    said = dataclasses.asdict(config)
    said["use_sliding_window"] = config.sliding_window is not None
    rope: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope["rope_scaling"] = said["rope_scaling"] | {"rope_type": "llama3"}
    for name, architecture in ARCHITECTURES.items():
        keys = (*_SIZES, *_OPTIONAL, *architecture.keys)
        raw = {"model_type": name} | {key: said[key] for key in keys} | rope
        if config_from_hub(raw) == config:
            return raw
    raise ValueError(f"none of {', '.join(ARCHITECTURES)} has all variants of {config}")


def _wanted(key: str, *, head: bool) -> bool:
    if key.startswith(f"{LM_HEAD}."):
        return head
    return not key.startswith(_SCORE) and not key.endswith(".rotary_emb.inv_freq")


def _full_name(key: str) -> str:
    return key if key.startswith(("model.", f"{LM_HEAD}.")) else f"model.{key}"


def _check_head(config: DecoderConfig, tensors: dict[str, np.ndarray]) -> None:
    """Sees to it that an output layer is stored exactly where it is not tied."""
    if not config.tie_word_embeddings:
        if _HEAD not in tensors:
            raise ValueError(
                f"stored without {_HEAD}, so it predicts no tokens; save it from "
                "AutoModelForCausalLM"
            )
        return
    stored = tensors.pop(_HEAD, None)
    if stored is not None and not np.array_equal(stored, tensors.get(_WORDS, 0)):
        raise ValueError(
            f"tie_word_embeddings is set, but {_HEAD} is not {_WORDS}; set it to false "
            f"in {hub.CONFIG}"
        )


def _rope(raw: Raw) -> dict[str, Any]:
    """``rope_parameters``, or the older ``rope_scaling`` and what lay beside it."""
    beside = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    rope = {"rope_theta": 10000.0}
    rope |= {name: raw[name] for name in beside if raw.get(name) is not None}
    return rope | (raw.get("rope_scaling") or {}) | (raw.get("rope_parameters") or {})


def _scaling(rope: dict[str, Any]) -> Llama3Scaling | None:
    nested = sorted(name for name, value in rope.items() if isinstance(value, dict))
    if nested:
        raise ValueError(
            f"rope_parameters of {nested[0]} alone cannot be computed here"
        )
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
