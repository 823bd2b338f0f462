"""Saved modules besides LoRA, such as classifiers: which of them a merge carries."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.io.adapters import Adapters
from jaxmerge.io.errors import AdapterError, either
from jaxmerge.refusals import Option

Heads = Mapping[str, np.ndarray]


def merged_heads(like: Adapters, policy: str) -> Heads:
    """The heads that go into the merged adapter itself under "first" or "mean"."""
    carried = [heads for heads in like.heads if heads]
    if not carried or policy == "keep":
        return {}
    if policy == "error":
        raise AdapterError(
            f"the adapters carry saved modules ({', '.join(sorted(carried[0]))}); ",
            "pass ",
            Option("heads", "keep", quoted=True),
            ", ",
            *either("heads", "first", "mean"),
            ", or a table of tensors",
        )
    if policy == "first":
        return carried[0]
    return {name: _mean(name, carried) for name in carried[0]}


def _mean(name: str, carried: Sequence[Heads]) -> np.ndarray:
    shapes = {heads[name].shape if name in heads else None for heads in carried}
    if len(shapes) > 1:
        raise AdapterError(
            f"saved module {name!r} is missing or of another shape in some adapters, ",
            "so there is no mean; pass ",
            *either("heads", "keep", "first"),
        )
    values = [heads[name] for heads in carried]
    if np.issubdtype(values[0].dtype, np.integer) or values[0].dtype == bool:
        if all(np.array_equal(value, values[0]) for value in values):
            return values[0]
        raise AdapterError(f"saved module {name!r} holds integers that differ; no mean")
    mean = np.mean([value.astype(np.float64) for value in values], axis=0)
    return mean.astype(values[0].dtype)


def head_files(like: Adapters, policy: str) -> dict[str, Heads]:
    """File name -> heads of one task, under "keep"."""
    if policy != "keep":
        return {}
    return {
        f"heads/{_file_stem(name, place)}.safetensors": heads
        for place, (name, heads) in enumerate(zip(like.names, like.heads, strict=True))
        if heads
    }


def _file_stem(name: str, place: int) -> str:
    """The task's name where it is harmless as a file name, else its number."""
    plain = re.fullmatch(r"[\w][\w.-]{0,99}", name, flags=re.ASCII)
    return name if plain else f"task{place}"


def head_modules(names: Iterable[str], like: Adapters) -> list[str]:
    """PEFT's ``modules_to_save``: heads as the inputs list them, or by full name."""
    listed = sorted(
        {saved for source in like.sources for saved in _listed(source.config)}
    )
    modules = set()
    for name in names:
        if ".base_layer." in f".{name}":
            continue  # the embedding matrix that PEFT saves beside its LoRA
        within = [saved for saved in listed if f".{saved}." in f".{name}"]
        modules.add(within[0] if within else name.rpartition(".")[0])
    return sorted(modules)


def _listed(config: Mapping[str, Any]) -> list[str]:
    value = config.get("modules_to_save") or []
    return [value] if isinstance(value, str) else value
