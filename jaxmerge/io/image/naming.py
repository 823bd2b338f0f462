"""Kohya's names of modules -> those of diffusers, where they are certain.

A name of kohya's has underscores for dots and for underscores, so it is never taken
apart: it is looked up in the tables of the UNets, the text encoders and FLUX.1. Names
that are in no table are refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.factors import FactorSpec
from jaxmerge.io.image import clip_names, flux_names, unet_names
from jaxmerge.io.image.file_kinds import KINDS
from jaxmerge.io.image.flux_names import Fused

if TYPE_CHECKING:
    from jaxmerge.io.opening import OpenAdapter

_UNET, _FLAT_TRANSFORMER = "lora_unet_", "lora_transformer_"


def in_one_naming(adapters: "Sequence[OpenAdapter]") -> "list[OpenAdapter]":
    """Adapters of one kind as they are; kohya's beside diffusers' in their names.

    Raises:
      AdapterError: kinds whose names cannot be brought together, or names that mean
        different modules in two files.
    """
    kinds = {adapter.config.kind for adapter in adapters}
    _check_numbered(adapters)
    if kinds == {"kohya"}:
        _check_one_name(adapters)
    if len(kinds) == 1:
        return list(adapters)
    if kinds != {"kohya", "diffusers"}:
        raise AdapterError(_says_kinds(adapters))
    return [
        in_diffusers_names(adapter) if adapter.config.kind == "kohya" else adapter
        for adapter in adapters
    ]


def in_diffusers_names(adapter: "OpenAdapter") -> "OpenAdapter":
    """An adapter of kohya's with the names of diffusers, fused layers in their parts.

    Raises:
      AdapterError: a module that is in no table.
    """
    specs: dict[str, FactorSpec] = {}
    unknown = []
    for name, spec in adapter.specs.items():
        found = dict(_renamed(name, spec))
        if not found:
            unknown.append(name)
        specs.update(found)
    if unknown:
        raise AdapterError(
            f"{adapter.folder}: the names of diffusers are not certain for "
            f"{len(unknown)} of {len(adapter.specs)} modules ({listing(unknown)}), "
            "which are not of Stable Diffusion 1, 2, XL or FLUX.1, or are named in "
            "another way; merge files of kohya's among themselves, which keeps their "
            "names, or load the file with diffusers and save it there"
        )
    note = "kohya's names were brought to those of diffusers"
    return replace(
        adapter,
        specs=specs,
        config=replace(adapter.config, kind="diffusers"),
        notes=(*adapter.notes, note),
    )


def diffusers_modules(name: str) -> tuple[str, Fused] | None:
    """Component and modules of diffusers that one of kohya's modules is, if certain.

    >>> diffusers_modules("lora_te1_text_model_encoder_layers_0_mlp_fc1")[1].modules
    ('text_model.encoder.layers.0.mlp.fc1',)
    """
    for start, component in clip_names.COMPONENTS.items():
        if name.startswith(start):
            module = clip_names.from_kohya().get(name.removeprefix(start))
            return (component, Fused((module,), ())) if module else None
    if name.startswith(_UNET):
        rest = name.removeprefix(_UNET)
        module = unet_names.from_kohya().get(rest)
        if module:
            return "unet", Fused((module,), ())
        fused = flux_names.from_kohya().get(rest)
        return ("transformer", fused) if fused else None
    if name.startswith(_FLAT_TRANSFORMER):
        module = flux_names.flat().get(name.removeprefix(_FLAT_TRANSFORMER))
        return ("transformer", Fused((module,), ())) if module else None
    return None


def _renamed(name: str, spec: FactorSpec) -> Iterator[tuple[str, FactorSpec]]:
    found = diffusers_modules(name)
    if found is None:
        return
    component, fused = found
    rows = fused.rows(*spec.shape)
    if rows is None:
        return
    for module, part in zip(fused.modules, rows, strict=True):
        shape = (part.stop - part.start, spec.shape[1])
        whole = len(rows) == 1
        changed = spec if whole else replace(spec, shape=shape, rows=part)
        yield f"{component}.{module}", changed


def _check_one_name(adapters: "Sequence[OpenAdapter]") -> None:
    """AdapterError if two of kohya's names are one module, as it knows two layouts."""
    names: dict[str, tuple[str, str]] = {}
    for adapter in adapters:
        for name in adapter.specs:
            found = diffusers_modules(name)
            if found is None:
                continue
            module = f"{found[0]}.{found[1].modules[0]}"
            other, folder = names.setdefault(module, (name, adapter.folder))
            if other != name:
                raise AdapterError(
                    f"{folder} and {adapter.folder} name one module in two ways, "
                    f"{other!r} and {name!r}; convert one of them to a diffusers file "
                    "(`jaxmerge.convert`), by whose names both are then merged"
                )


def _check_numbered(adapters: "Sequence[OpenAdapter]") -> None:
    numbered = [a for a in adapters if a.config.kind == "numbered"]
    for first, other in zip(numbered[:1] * len(numbered), numbered, strict=True):
        mine, theirs = (a.config.raw["header"] for a in (first, other))
        for model in sorted(mine.keys() & theirs.keys()):
            if mine[model] != theirs[model]:
                raise AdapterError(
                    f"{other.folder}: its modules of {model!r} are numbered among the "
                    f"layers {theirs[model]}, those of {first.folder} among "
                    f"{mine[model]}, so one number means two modules; apply one of "
                    "them to its model and save it with PEFT"
                )


def _says_kinds(adapters: "Sequence[OpenAdapter]") -> str:
    first = adapters[0]
    other = next(a for a in adapters if a.config.kind != first.config.kind)
    said = [
        "a PEFT folder" if a.config.kind == "peft" else KINDS[a.config.kind].says
        for a in (first, other)
    ]
    return (
        f"{first.folder} is {said[0]} and {other.folder} is {said[1]}, which name "
        "modules in different ways; convert one of them to the kind of the other "
        "(`jaxmerge.convert`)"
        + (
            "; numbered modules have no names, so apply that adapter to its model and "
            "save it with PEFT"
            if "numbered" in {first.config.kind, other.config.kind}
            else ""
        )
    )
