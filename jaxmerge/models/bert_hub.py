"""Folders of BERT and RoBERTa, read and written without torch."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.folders import Folder
from jaxmerge.models import hub
from jaxmerge.models.bert import PREFIXES, BertConfig, init_bert

HEADS = ("cls.", "classifier.", "qa_outputs.", "lm_head.")  # left unread
_ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
}


def load_bert(
    folder: Folder,
    *,
    dtype: Any = jnp.float32,
    place: hub.Place = hub.on_one_device,
) -> tuple[BertConfig, dict[str, Any]]:
    """Reads the encoder of a Hugging Face folder of BERT, RoBERTa or XLM-RoBERTa.

    Reads the ``...Model`` and ``...For...`` checkpoints, whose heads are left unread,
    and so is the pooler of a RoBERTa, as its classifiers do not have one.

    Args:
      folder: folder with ``config.json`` and safetensors weights.
      dtype: floating type of the parameters and so of the computation.
      place: puts a parameter, known by its name, on its devices, as `hub.to_flax` does.

    Returns:
      The config and the parameters for `bert_apply`.

    Raises:
      ValueError: another kind of model, a BERT without a pooler or with features that
        are not computed here, or weights that do not fit the config; the message names
        the folder.
    """
    raw = hub.read_config(folder)
    tensors = hub.open_tensors(folder, keep=_of_encoder)
    with hub.naming_folder(folder):
        config = _config_from_hub(raw)
        prefix = PREFIXES[config.model_type]
        tensors = {_current_name(key, prefix): x for key, x in tensors.items()}
        if not config.has_pooler:
            pooler = f"{prefix}.pooler."
            tensors = {k: x for k, x in tensors.items() if not k.startswith(pooler)}
        elif "bert.pooler.dense.weight" not in tensors:
            raise ValueError(
                "stored without a pooler, as masked language models are, so it has no "
                "pooled features; save it from BertModel or "
                "BertForSequenceClassification"
            )
        template = jax.eval_shape(partial(init_bert, config), jax.random.key(0))
        return config, hub.to_flax(tensors, template, dtype=dtype, place=place)


def save_bert(folder: Folder, config: BertConfig, params: Any) -> None:
    """Writes an encoder as a folder that transformers and `load_bert` read."""
    raw = {"architectures": [_ARCHITECTURES[config.model_type]]}
    tensors = hub.from_flax(params[PREFIXES[config.model_type]])
    hub.write_folder(folder, raw | dataclasses.asdict(config), tensors)


def _of_encoder(key: str) -> bool:
    return not key.startswith(HEADS) and not key.endswith(".position_ids")


def _current_name(key: str, prefix: str) -> str:
    """A stored key with the prefix, and without the names of TensorFlow's norms."""
    key = key if key.startswith(f"{prefix}.") else f"{prefix}.{key}"
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if key.endswith(f"LayerNorm{old}"):
            return key.removesuffix(old) + new
    return key


def _config_from_hub(raw: dict[str, Any]) -> BertConfig:
    hub.refuse_others(
        raw,
        {
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "quantization_config": None,
        },
    )
    kind = raw.get("model_type")
    given: dict[str, Any] = {"model_type": kind, "pad_token_id": int(kind != "bert")}
    fields = {field.name for field in dataclasses.fields(BertConfig)}
    given |= {k: v for k, v in raw.items() if k in fields and v is not None}
    return BertConfig(**given)
