"""Wrappers that training leaves in the names of tensors.

``torch.compile``, FSDP, data parallel training and their like put a module around
another one. A checkpoint that is saved through them names the wrapper, the base model
does not: an adapter with such names attaches nowhere.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

PEFT_PREFIX = "base_model.model."  # of every name that PEFT writes
_INSIDE = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_fpw_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "a training strategy",
    "module": "data parallel training",
}
_MAY_BE_A_LAYER = "module"
_TENSOR = re.compile(r"(lora|vera)_.*|weight|bias")
# what checkpoints and trainers call the model, where PEFT's own names follow
_IN_FRONT = {
    *("model", "model_state", "model_state_dict", "state_dict", "pretrained_model"),
    *("app", "net", "network"),
}
_IN_FRONT_OF_ANY = (
    *(("model_state", "model"), ("app", "model")),
    *(("state_dict",), ("model_state_dict",)),
)


class Unwrapped(NamedTuple):
    """A tensor's name without wrappers, and which were taken off it, in their order."""

    name: str
    wrappers: tuple[str, ...] = ()


def unwrapped(key: str) -> Unwrapped:
    """Takes known wrappers off the name of a tensor.

    >>> unwrapped("_orig_mod.base_model.model.h.0._orig_mod.fc.lora_A.weight")
    Unwrapped(name='base_model.model.h.0.fc.lora_A.weight', wrappers=('_orig_mod',))
    >>> unwrapped("model.base_model.model.fc.lora_A.weight")
    Unwrapped(name='base_model.model.fc.lora_A.weight', wrappers=('model',))
    """
    kept: list[str] = []
    taken: list[str] = []
    pieces = key.split(".")
    for piece, after in zip(pieces, [*pieces[1:], ""], strict=True):
        layer = piece == _MAY_BE_A_LAYER and _TENSOR.fullmatch(after)
        (taken if piece in _INSIDE and not layer else kept).append(piece)
    front = _front(kept)
    if front:
        taken.insert(0, ".".join(kept[:front]))
    return Unwrapped(".".join(kept[front:]), tuple(dict.fromkeys(taken)))


def _front(pieces: Sequence[str]) -> int:
    """How many pieces in front of a name belong to no module of a model."""
    for place, piece in enumerate(pieces):
        if piece == "base_model":
            return place
        if piece not in _IN_FRONT:
            break
    for front in _IN_FRONT_OF_ANY:
        if tuple(pieces[: len(front)]) == front:
            return len(front)
    return 0


def wrapper_note(wrappers: Iterable[str]) -> str:
    """What is said of wrappers that were taken off."""
    known = {name: _INSIDE.get(name) for name in sorted(set(wrappers))}
    listed = ", ".join(
        f"{name!r} of {source}" if source else repr(name)
        for name, source in known.items()
    )
    return f"took wrappers off the names of tensors: {listed}"


def foreign_front(module: str) -> str | None:
    """What stands before PEFT's own prefix in the name of a module, prefix included.

    >>> foreign_front("llm.base_model.model.h.0.fc")
    'llm.base_model.model.'
    >>> foreign_front("h.0.fc")
    """
    found = re.match(rf"(.+\.)?{re.escape(PEFT_PREFIX)}", module)
    return found.group() if found else None
