"""Tensor names of adapter files <-> module names and the parts of a factorisation."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxmerge.io.errors import AdapterError, listing, show
from jaxmerge.refusals import Option

PEFT_PREFIX = "base_model.model."

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
_LONGEST_NAME = 1000  # bounds what matching names against patterns costs
_HEAD_LEAVES = ("weight", "bias")
_PROJECTIONS = {"base_model.vera_A": "A", "base_model.vera_B": "B"}


@dataclass
class KeyTable:
    """The tensors of one file, sorted by what they are.

    Attributes:
      modules: module -> part -> tensor key.
      heads: saved non-LoRA tensors, name without PEFT's prefix -> tensor key.
      projections: VeRA's shared "A" and "B" -> tensor key.
    """

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    projections: dict[str, str] = field(default_factory=dict)


def sort_keys(
    keys: Collection[str], path: Path, modules_to_save: Sequence[str] = ()
) -> KeyTable:
    """Sorts the tensor keys of a PEFT file; a key that is not understood is an error.

    Args:
      keys: tensor names, such as ``base_model.model.fc.lora_A.weight``; an adapter
        name behind ``lora_A`` (``.default.``) is accepted, and files without prefix.
      path: the file, for messages.
      modules_to_save: the config's list; tensors below these modules are heads,
        whatever they are called.
    """
    table = KeyTable()
    prefixed = {key.startswith("base_model.") for key in keys}
    if len(prefixed) > 1:
        strange = next(key for key in keys if not key.startswith("base_model."))
        raise AdapterError(
            f"{path}: some tensors start with {PEFT_PREFIX!r} and some do not "
            f"({strange!r}); the file mixes two layouts"
        )
    adapter_names: set[str] = set()
    for key in keys:
        if len(key) > _LONGEST_NAME:
            raise AdapterError(
                f"{path}: a tensor has a name of {len(key)} characters ({show(key)}); "
                "no module of a model is called that, save the adapter again"
            )
        projection, _, adapter = _split(key, ("vera_A", "vera_B"))
        if projection == "base_model":
            leaf = key.removesuffix(f".{adapter}") if adapter else key
            table.projections[_PROJECTIONS[leaf]] = key
            continue
        name = key.removeprefix(PEFT_PREFIX)
        module, part, adapter = _factor(name, key, path)
        if part is None:
            table.heads[_head_name(name, key, path, modules_to_save)] = key
            continue
        adapter_names.add(adapter)
        parts = table.modules.setdefault(module, {})
        if part in parts:
            raise AdapterError(f"{path}: {parts[part]!r} and {key!r} name one tensor")
        parts[part] = key
    if len(adapter_names) > 1:
        raise AdapterError(
            f"{path}: holds several adapters ({listing(sorted(adapter_names))}); "
            "save each in a folder of its own"
        )
    return table


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
    markers = {part.split(".")[0] for part in _PARTS} | set(_REFUSED_PARTS)
    module, marker, rest = _split(name, markers)
    if module is None:
        return "", None, ""
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
    module, _, rest = _split(name, ("modules_to_save",))
    if module is not None:
        name = f"{module}.{rest.partition('.')[2]}"
    listed = any(f".{saved}." in f".{name}" for saved in modules_to_save)
    variant = any(piece.startswith(("lora_", "vera_")) for piece in name.split("."))
    if not listed and (variant or name.rpartition(".")[2] not in _HEAD_LEAVES):
        raise AdapterError(
            f"{path}: tensor {key!r} is neither a LoRA factor nor a saved module; "
            "the file is in another layout, or of a variant that is not known here"
        )
    return name


def rename_modules(
    names: Iterable[str], path: Path, *, strip_prefix: str = "", add_prefix: str = ""
) -> dict[str, str]:
    """Old -> new module names: ``strip_prefix`` off, then ``add_prefix`` on.

    A name without ``strip_prefix``, or that has ``add_prefix`` already, keeps its form.

    >>> rename_modules(["m.fc", "fc2"], Path("x"), strip_prefix="m.")
    {'m.fc': 'fc', 'fc2': 'fc2'}
    """
    renamed: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        new = name.removeprefix(strip_prefix)
        new = new if new.startswith(add_prefix) else add_prefix + new
        if not new or new in taken:
            raise AdapterError(
                f"{path}: with ",
                Option("strip_prefix", strip_prefix, quoted=True),
                " and ",
                Option("add_prefix", add_prefix, quoted=True),
                f" module {name!r} has no name of its own",
            )
        taken.add(new)
        renamed[name] = new
    return renamed


def common_prefix_change(mine: Iterable[str], theirs: Iterable[str]) -> str | None:
    """The prefix that most of ``mine`` lack to be among ``theirs``, if there is one.

    >>> common_prefix_change(["h.0.fc", "h.1.fc"], ["vision.h.0.fc", "vision.h.1.fc"])
    'vision.'
    """
    mine = list(mine)
    votes: dict[str, int] = {}
    ends = _by_last_piece(theirs)
    for name in mine:
        for other in ends.get(name.rpartition(".")[2], []):
            if other.endswith(f".{name}"):
                prefix = other[: -len(name)]
                votes[prefix] = votes.get(prefix, 0) + 1
    best = max(votes, key=votes.__getitem__, default=None)
    return best if best is not None and 2 * votes[best] > len(mine) else None


def _by_last_piece(names: Iterable[str]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for name in names:
        table.setdefault(name.rpartition(".")[2], []).append(name)
    return table
