"""BERT folders of Hugging Face, read and written without torch."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.folders import Folder
from jaxmerge.models import hub
from jaxmerge.models.bert import BertConfig, init_bert

HEADS = ("cls.", "classifier.", "qa_outputs.")  # layers after the encoder, left unread


def load_bert(
    folder: Folder, *, dtype: Any = jnp.float32
) -> tuple[BertConfig, dict[str, Any]]:
    """Reads the encoder of a Hugging Face BERT folder.

    Reads BertModel and BertFor... checkpoints, whose heads are left unread.

    Args:
      folder: folder with ``config.json`` and safetensors weights.
      dtype: floating type of the parameters and so of the computation.

    Returns:
      The config and the parameters for `bert_apply`.

    Raises:
      ValueError: another kind of model, a BERT without a pooler or with features that
        are not computed here, or weights that do not fit the config; the message names
        the folder.
    """
    raw = hub.read_config(folder)
    tensors = hub.read_tensors(folder, keep=_of_encoder)
    try:
        config = _config_from_hub(raw)
        tensors = {_current_name(key): value for key, value in tensors.items()}
        if "bert.pooler.dense.weight" not in tensors:
            raise ValueError(
                "stored without a pooler, as masked language models are, so it has no "
                "pooled features; save it from BertModel or "
                "BertForSequenceClassification"
            )
        template = jax.eval_shape(partial(init_bert, config), jax.random.key(0))
        return config, hub.to_flax(tensors, template, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def save_bert(folder: Folder, config: BertConfig, params: Any) -> None:
    """Writes a BERT as a folder that transformers' BertModel and `load_bert` read."""
    raw = {"architectures": ["BertModel"], "model_type": "bert"}
    tensors = hub.from_flax(params["bert"])
    hub.write_folder(folder, raw | dataclasses.asdict(config), tensors)


def _of_encoder(key: str) -> bool:
    return not key.startswith(HEADS) and not key.endswith(".position_ids")


def _current_name(key: str) -> str:
    """A stored key with the prefix, and without the names of TensorFlow's norms."""
    key = key if key.startswith("bert.") else f"bert.{key}"
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if key.endswith(f"LayerNorm{old}"):
            return key.removesuffix(old) + new
    return key


def _config_from_hub(raw: dict[str, Any]) -> BertConfig:
    if raw.get("model_type") != "bert":
        raise ValueError(f"model_type {raw.get('model_type')!r} is not bert")
    hub.refuse_others(
        raw,
        {
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "quantization_config": None,
        },
    )
    fields = {field.name for field in dataclasses.fields(BertConfig)}
    return BertConfig(**{k: v for k, v in raw.items() if k in fields})
