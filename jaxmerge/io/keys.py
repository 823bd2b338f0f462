"""Tensor names of adapter files <-> module names and the parts of a factorisation."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxmerge.io.errors import AdapterError, listing, show
from jaxmerge.io.wrappers import PEFT_PREFIX, Unwrapped, unwrapped, wrapper_note

# Leaf names below a module, by the part of the factorisation that they hold.
_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias",
    "lora_A": "A",  # AdaLoRA saves plain parameters
    "lora_B": "B",
    "lora_E": "E",
    "lora_embedding_A": "embedding_A",
    "lora_embedding_B": "embedding_B",
    "vera_lambda_b": "lambda_b",
    "vera_lambda_d": "lambda_d",
}
_REFUSED_PARTS = {
    "lora_magnitude_vector": "DoRA rescales the base weight, so its update depends on "
    "the base; merge it into the base and extract a plain LoRA",
    "lora_diag": "KaSA truncates the base weight; convert it to a plain LoRA",
    "trainable_tokens_delta": "it replaces single embedding rows; save the adapter "
    "without trainable tokens or merge them into the base",
}
_MARKERS = {part.split(".")[0] for part in _PARTS} | set(_REFUSED_PARTS)
_SCALES = re.compile(
    r"(^|\.)(weight_scale(_inv)?|scale_weight|input_scale|absmax|quant_map|quant_state"
    r"|nested_absmax|nested_quant_map|SCB|qzeros|scales)(\.|$)"
)
LONGEST_NAME = 500  # bounds what matching names against patterns costs
_HEAD_LEAVES = ("weight", "bias")
_SAVED_WRAPPERS = ("modules_to_save", "original_module")
_PEFT = "base_model."
_PROJECTIONS = {"base_model.vera_A": "A", "base_model.vera_B": "B"}


@dataclass
class KeyTable:
    """The tensors of one file, sorted by what they are.

    Attributes:
      modules: module -> part -> tensor key.
      heads: saved non-LoRA tensors, name without PEFT's prefix -> tensor key.
      projections: VeRA's shared "A" and "B" -> tensor key.
      wrapped: module -> its name in the file, where wrappers were taken off it.
      notes: what was taken off or left out, for people.
    """

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    projections: dict[str, str] = field(default_factory=dict)
    wrapped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def sort_keys(
    keys: Collection[str], path: Path, modules_to_save: Sequence[str] = ()
) -> KeyTable:
    """Sorts the tensor keys of a PEFT file; a key that is not understood is an error.

    Args:
      keys: tensor names, such as ``base_model.model.fc.lora_A.weight``; an adapter
        name behind ``lora_A`` (``.default.``) is accepted, and files without prefix.
        Wrappers of training are taken off, see `jaxmerge.io.wrappers`.
      path: the file, for messages.
      modules_to_save: the config's list; tensors below these modules are heads,
        whatever they are called.
    """
    table = KeyTable()
    names = _names(keys, path)
    adapter_names: set[str] = set()
    frozen: dict[str, str] = {}
    for key, (name, wrappers) in names.items():
        projection, _, adapter = _split(name, ("vera_A", "vera_B"))
        if projection == "base_model":
            leaf = name.removesuffix(f".{adapter}") if adapter else name
            if leaf not in _PROJECTIONS:
                raise AdapterError(f"{path}: tensor {key!r} is not understood")
            _enter(table.projections, _PROJECTIONS[leaf], key, path)
            continue
        name = name.removeprefix(PEFT_PREFIX)
        module, part, adapter = _factor(name, key, path)
        if part is None:
            head = _head_name(name, key, path, modules_to_save)
            copies = frozen if ".original_module." in f".{name}" else table.heads
            _enter(copies, head, key, path)
            continue
        adapter_names.add(adapter)
        _enter(table.modules.setdefault(module, {}), part, key, path)
        if wrappers:
            within = _split(key, _MARKERS)[0] or module
            table.wrapped[module] = within.rpartition(PEFT_PREFIX)[2]
    if len(adapter_names) > 1:
        raise AdapterError(
            f"{path}: holds several adapters ({listing(sorted(adapter_names))}); "
            "save each in a folder of its own"
        )
    if any(wrappers for _, wrappers in names.values()):
        table.notes.append(wrapper_note(w for _, ws in names.values() for w in ws))
    if frozen:
        _leave_out_copies(frozen, table, path)
    return table


def _names(keys: Collection[str], path: Path) -> dict[str, Unwrapped]:
    """key -> its name without wrappers; all have PEFT's prefix, or none."""
    for key in keys:
        if len(key) > LONGEST_NAME:
            raise AdapterError(
                f"{path}: a tensor has a name of {len(key)} characters ({show(key)}); "
                "no module of a model is called that, save the adapter again"
            )
    names = {key: unwrapped(key) for key in keys}
    bare = [key for key, (name, _) in names.items() if not name.startswith(_PEFT)]
    if 0 < len(bare) < len(names):
        raise AdapterError(
            f"{path}: some tensors start with {PEFT_PREFIX!r} and some do not "
            f"({bare[0]!r}); the file mixes two layouts"
        )
    return names


def _enter(table: dict[str, str], name: str, key: str, path: Path) -> None:
    if name in table:
        raise AdapterError(f"{path}: {table[name]!r} and {key!r} name one tensor")
    table[name] = key


def _leave_out_copies(frozen: Mapping[str, str], table: KeyTable, path: Path) -> None:
    """Frozen copies of the base that stand beside the saved modules themselves."""
    alone = [key for name, key in frozen.items() if name not in table.heads]
    if alone:
        raise AdapterError(
            f"{path}: tensor {alone[0]!r} is the copy of the base that PEFT keeps "
            "beside a saved module, but the module itself is not in the file; save "
            "the adapter again"
        )
    table.notes.append(
        f"left out the copies of the base beside saved modules: {listing(frozen)}"
    )


def _split(key: str, markers: Iterable[str]) -> tuple[str | None, str, str]:
    """Splits a dotted name at its last marker: module, marker and rest."""
    pieces = key.split(".")
    for place in range(len(pieces) - 1, 0, -1):
        if pieces[place] in markers:
            rest = ".".join(pieces[place + 1 :])
            return ".".join(pieces[:place]), pieces[place], rest
    return None, "", ""


def _factor(name: str, key: str, path: Path) -> tuple[str, str | None, str]:
    """(module, part, adapter name) of a tensor; part is None if it is no factor."""
    module, marker, rest = _split(name, _MARKERS)
    if module is None:
        return "", None, ""
    owner, wrapper, _ = _split(module, _SAVED_WRAPPERS)
    if owner is not None:
        raise AdapterError(
            f"{path}: tensor {key!r}: {owner!r} is saved whole and targeted by LoRA at "
            f"once, so PEFT's wrapper of saved modules ({wrapper}) holds LoRA; train "
            "again with it in target_modules or in modules_to_save alone (task types "
            "with a head, such as SEQ_CLS, save that head without being asked)"
        )
    if _SCALES.search(rest):
        raise AdapterError(
            f"{path}: tensor {key!r} is a scale of quantised factors, which mean "
            "nothing without it; save the adapter as bf16, fp16 or fp32"
        )
    if marker in _REFUSED_PARTS:
        raise AdapterError(f"{path}: tensor {key!r}: {_REFUSED_PARTS[marker]}")
    if module.endswith("base_layer"):
        raise AdapterError(
            f"{path}: tensor {key!r} is LoRA on fused parameters (3-D experts), which "
            "is not supported; unfuse the experts into linear layers first"
        )
    adapter, _, leaf = rest.rpartition(".")
    if leaf not in ("weight", "bias"):
        adapter, leaf = rest, ""
    part = _PARTS.get(f"{marker}.{leaf}" if leaf else marker)
    if part is None or "." in adapter:
        raise AdapterError(f"{path}: tensor {key!r} is not understood")
    return module, part, adapter


def _head_name(name: str, key: str, path: Path, modules_to_save: Sequence[str]) -> str:
    """Name of a saved non-LoRA tensor, free of PEFT's wrapper."""
    module, wrapper, rest = _split(name, _SAVED_WRAPPERS)
    if module is not None:
        inside = rest.partition(".")[2] if wrapper == "modules_to_save" else rest
        name = f"{module}.{inside}"
    listed = any(f".{saved}." in f".{name}" for saved in modules_to_save)
    variant = any(piece.startswith(("lora_", "vera_")) for piece in name.split("."))
    if not listed and (variant or name.rpartition(".")[2] not in _HEAD_LEAVES):
        raise AdapterError(
            f"{path}: tensor {key!r} is neither a LoRA factor nor a saved module; "
            "the file is in another layout, or of a variant that is not known here"
        )
    return name
