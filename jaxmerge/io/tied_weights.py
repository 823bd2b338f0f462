"""Output layers that share the weight of the input embedding, in a full model."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.io.base_model import BaseModel
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.refusals import Option

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
_SEVERAL = ("shared.weight", "model.shared.weight")  # of encoders with decoders
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_MASKED = ("ForMaskedLM", "ForPreTraining")
_FLAG = "tie_word_embeddings"


class Tie(NamedTuple):
    """An output layer that may be one weight with the input embedding.

    Attributes:
      embedding: key of the weight in the file.
      head: key under which the output layer has it.
      biases: further keys that are not in the file while the two are tied -> key of
        what they are equal to.
    """

    embedding: str
    head: str
    biases: Mapping[str, str]


def find_tie(model: BaseModel) -> Tie | None:
    """What may be tied in a model, by its headers; None if it has no output layer.

    A head that is in the file beside the embedding is not tied if the config says so.
    """
    keys = model.tensors.infos
    embeddings = [key for key in keys if _embeds(key)]
    head = _head(keys, model.config)
    if head is None or len(embeddings) != 1:
        return None
    tie = Tie(embeddings[0], *head)
    return None if tie.head in keys and _said(model.config) is False else tie


def is_tied(model: BaseModel, tie: Tie) -> bool:
    """Whether two layers are one weight: the head is not in the file, or it is equal.

    Raises:
      AdapterError: config and weights contradict each other.
    """
    said = _said(model.config)
    if tie.head not in model.tensors.infos:
        if said is False:
            raise AdapterError(
                f"{model.folder}: {_FLAG} is false in config.json, but the weights "
                f"hold no {tie.head!r}; save the model again"
            )
        return True
    equal = _equal(model, tie.embedding, tie.head)
    if said is True and not equal:
        raise AdapterError(
            f"{model.folder}: {_FLAG} is true in config.json, but {tie.embedding!r} "
            f"and {tie.head!r} differ; set it to false if they are meant to"
        )
    return equal


def check_unclear(model: BaseModel, changed: Collection[str]) -> None:
    """AdapterError if a changed embedding may be tied in a way that is not known."""
    keys = model.tensors.infos
    several = [key for key in _SEVERAL if key in keys and key in changed]
    embeddings = [key for key in keys if _embeds(key)]
    touched = [key for key in embeddings if key in changed]
    architectures = _architectures(model.config)
    masked = any(name.endswith(_MASKED) for name in architectures)
    unknown = not architectures or (masked and _head(keys, model.config) is None)
    if several or (touched and (unknown or len(embeddings) > 1)):
        raise AdapterError(
            f"{model.folder}: the adapter changes {listing(several or touched)}, and "
            "which other layers share that weight is not known for "
            f"{', '.join(architectures) or 'a config without architectures'}; pass ",
            Option("tied", "together", quoted=True),
            " to change the stored weight, and with it every layer that shares it",
        )


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says that the output layer has a weight of its own."""
    new = {
        name: {**part, _FLAG: False} if name == "text_config" else part
        for name, part in config.items()
    }
    return {**new, _FLAG: False}


def refuse_tied(model: BaseModel, tie: Tie, changed: Collection[str]) -> None:
    """AdapterError that says what becomes of a tied weight that an adapter changes."""
    mine = tie.head if tie.head in changed else tie.embedding
    raise AdapterError(
        f"{model.folder}: the adapter changes {mine!r}, and {tie.embedding!r} and "
        f"{tie.head!r} are one weight in this model; pass ",
        Option("tied", "untie", quoted=True),
        " to give each its own, which is what the adapter computes, or ",
        Option("tied", "together", quoted=True),
        " to change both, as PEFT's merge_and_unload does with LoRA",
    )


def _head(
    keys: Collection[str], config: Mapping[str, Any]
) -> tuple[str, dict[str, str]] | None:
    """Key of the output layer's weight, and what else is tied in it."""
    if any(key in keys for key in _SEVERAL):
        return None
    for bias, layer in (
        ("cls.predictions.bias", "cls.predictions.decoder"),
        ("lm_head.bias", "lm_head.decoder" if "lm_head.dense.weight" in keys else ""),
    ):
        if bias in keys and layer:
            return f"{layer}.weight", {f"{layer}.bias": bias}
    if any(name.endswith(_WITH_HEAD) for name in _architectures(config)):
        return "lm_head.weight", {}
    return None


def _architectures(config: Mapping[str, Any]) -> list[str]:
    found = config.get("architectures")
    return [name for name in found or [] if isinstance(name, str)]


def _said(config: Mapping[str, Any]) -> bool | None:
    """What a config says of the tie; None if it says nothing."""
    parts = [config, config.get("text_config")]
    found = [part[_FLAG] for part in parts if isinstance(part, dict) and _FLAG in part]
    return bool(found[0]) if found else None


def _embeds(key: str) -> bool:
    module, _, leaf = key.rpartition(".")
    return leaf == "weight" and module.rpartition(".")[2] in _EMBEDDINGS


def _equal(model: BaseModel, one: str, other: str) -> bool:
    infos = model.tensors.infos
    if infos[one] != infos[other]:
        return False
    pairs = zip(model.blocks(one), model.blocks(other), strict=True)
    return all(_same(x, y) for (_, x), (_, y) in pairs)


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    return x.tobytes() == y.tobytes()
