"""Adapters under the names of another kind of file: PEFT, diffusers or kohya.

Names change and fused layers are put together; no update is changed by that. From
kohya's names to those of diffusers the way is `jaxmerge.io.image.naming`, before the
tensors are read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxmerge.io.adapters import Adapters
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.image import clip_names, flux_names, unet_names
from jaxmerge.io.image.diffusers_file import COMPONENTS
from jaxmerge.io.image.flux_names import Fused
from jaxmerge.io.module_layout import Layout
from jaxmerge.refusals import Option
from jaxmerge.stacks import stack_adapters
from jaxmerge.types import AdapterStack


class _Layer(NamedTuple):
    """One layer of the original layout, which may hold several modules of diffusers."""

    name: str
    modules: tuple[str, ...]
    fused: Fused | None = None


def to_peft_names(adapters: Adapters, component: str | None) -> Adapters:
    """One component of a diffusers file as an adapter of that model alone.

    Args:
      adapters: of a diffusers file.
      component: such as "unet"; None if there is one only.
    """
    found = sorted({name.partition(".")[0] for name in adapters.stacks})
    if component is None and len(found) > 1:
        raise AdapterError(
            f"{adapters.sources[0].path}: adapts {', '.join(found)}, and a PEFT folder "
            "is of one model; choose with ",
            Option("component", found[0], quoted=True),
        )
    component = component or found[0]
    if component not in found:
        raise AdapterError(
            Option("component", component, quoted=True),
            f": {adapters.sources[0].path} adapts {', '.join(found)}",
        )
    front = f"{component}."
    kept = [name for name in adapters.stacks if name.startswith(front)]
    layers = [_Layer(name.removeprefix(front), (name,)) for name in kept]
    return _renamed(adapters, layers, "peft")


def to_diffusers_names(adapters: Adapters, component: str | None) -> Adapters:
    """An adapter of one model, from a PEFT folder, as a component of a pipeline."""
    if component not in COMPONENTS:
        raise AdapterError(
            "which component of a pipeline a PEFT folder is of is not in it: pass ",
            Option("component", "<name>"),
            f", one of {', '.join(COMPONENTS)}",
        )
    saved = [name for heads in adapters.heads for name in heads]
    if saved:
        raise AdapterError(
            f"{adapters.sources[0].path}: saves {listing(saved)} besides LoRA, for "
            "which a diffusers file has no place; train without it"
        )
    layers = [_Layer(f"{component}.{name}", (name,)) for name in adapters.stacks]
    return _renamed(adapters, layers, "diffusers")


def to_kohya_names(adapters: Adapters) -> Adapters:
    """An adapter of a diffusers file with kohya's names, fused where the original is.

    Raises:
      AdapterError: modules that are in no table, or files that do not tell of which
        model they are.
    """
    names = list(adapters.stacks)
    table, unknown = _kohya_table(_family(adapters)), []
    groups: dict[str, _Layer] = {}
    for name in names:
        layer = table(name)
        if layer is None:
            unknown.append(name)
        else:
            groups[layer.name] = layer
    if unknown:
        raise AdapterError(
            f"{adapters.sources[0].path}: kohya's names are not certain for "
            f"{len(unknown)} of {len(names)} modules ({listing(unknown)}), as they are "
            "not of Stable Diffusion 1, 2, XL or FLUX.1; keep it as a diffusers file"
        )
    return _renamed(adapters, list(groups.values()), "kohya")


def _family(adapters: Adapters) -> str:
    """The model that adapted modules are of: "flux", "sd" or "sdxl"; else AdapterError.

    The structure of the UNets tells them apart, else the text features that
    cross-attention takes.
    """
    names = list(adapters.stacks)
    components = {name.partition(".")[0] for name in names}
    if "transformer" in components:
        return "flux"
    mine = {name.removeprefix("unet.") for name in names if name.startswith("unet.")}
    second = "text_encoder_2" in components  # which XL alone has
    possible = [
        family
        for family in unet_names.UNETS
        if mine <= unet_names.original_names(family).keys()
        and (family == "sdxl" or not second)
    ]
    if len(possible) > 1:
        context = _context(adapters)
        possible = [
            family
            for family in possible
            if context in unet_names.UNETS[family].contexts
        ] or possible
    if len(possible) == 1:
        return possible[0]
    raise AdapterError(
        f"{adapters.sources[0].path}: its modules do not tell "
        + (
            "whether it is of Stable Diffusion 1 or 2 or of XL"
            if possible
            else "a model whose names are known (Stable Diffusion 1, 2, XL, FLUX.1)"
        )
        + ", which kohya's files name in different ways; keep it as a diffusers file"
    )


def _context(adapters: Adapters) -> int | None:
    """Number of text features that cross-attention takes, if that is adapted."""
    sizes = {
        stack.a.shape[2]
        for name, stack in adapters.stacks.items()
        if name.startswith("unet.") and name.endswith((".attn2.to_k", ".attn2.to_v"))
    }
    return sizes.pop() if len(sizes) == 1 else None


def _kohya_table(family: str) -> Callable[[str], _Layer | None]:
    """From a module of diffusers to its layer in kohya's files; None if unknown."""
    text = {"text_encoder": "lora_te_" if family == "sd" else "lora_te1_"}
    if family == "sdxl":
        text["text_encoder_2"] = "lora_te2_"
    clip = set(clip_names.from_kohya().values())
    fused = {
        module: _Layer(f"lora_unet_{name}", found.modules, found)
        for name, found in flux_names.from_kohya().items()
        for module in found.modules
    }
    unet = {} if family == "flux" else unet_names.original_names(family)

    def found(name: str) -> _Layer | None:
        component, _, module = name.partition(".")
        if component in text:
            full = module if module in clip else f"text_model.{module}"
            front = text[component]
            known = full in clip
            return _Layer(front + full.replace(".", "_"), (name,)) if known else None
        if component == "transformer" and module in fused:
            layer = fused[module]
            modules = tuple(f"transformer.{part}" for part in layer.modules)
            return _Layer(layer.name, modules, layer.fused)
        if component == "unet" and module in unet:
            other = module if family == "sd" else unet[module]
            return _Layer(f"lora_unet_{other.replace('.', '_')}", (name,))
        return None

    return found


def _renamed(adapters: Adapters, layers: Sequence[_Layer], kind: str) -> Adapters:
    """The adapters with the updates of layers under their names."""
    changed = {layer.name: _joined(adapters, layer) for layer in layers}
    first = {
        layer.name: next(m for m in layer.modules if m in adapters.stacks)
        for layer in layers
    }
    biases = {
        layer.name: adapters.biases[first[layer.name]]
        for layer in layers
        if first[layer.name] in adapters.biases
    }
    return replace(
        adapters,
        stacks=changed,
        layouts={name: adapters.layouts[module] for name, module in first.items()},
        biases=biases,
        sources=tuple(replace(s, kind=kind) for s in adapters.sources),
    )


def _joined(adapters: Adapters, layer: _Layer) -> AdapterStack:
    """The updates of modules as that of the one layer whose rows they are.

    ``[B_q A_q; B_k A_k; ..]`` is ``diag(B_q, B_k, ..) @ [A_q; A_k; ..]``, and of one A
    that all share it is ``[B_q; B_k; ..] @ A``.
    """
    present = {m: adapters.stacks[m] for m in layer.modules if m in adapters.stacks}
    if layer.fused is None or len(layer.modules) == 1:
        return next(iter(present.values()))
    n = next(iter(present.values())).a.shape[2]
    m = n * sum(layer.fused.sizes)
    rows = dict(zip(layer.modules, layer.fused.rows(m, n) or (), strict=True))
    for name, stack in present.items():
        size = rows[name].stop - rows[name].start
        kind = adapters.layouts[name].kind
        if (stack.b.shape[1], stack.a.shape[2], kind) != (size, n, Layout().kind):
            raise AdapterError(
                f"module {name!r}: is {kind} [{stack.b.shape[1]}, {stack.a.shape[2]}], "
                f"and as a part of {layer.name!r} has to be linear [{size}, {n}]; the "
                "file is not of FLUX.1"
            )
    tasks = range(len(adapters.names))
    return stack_adapters(
        [_fused_pair(present, rows, m, task) for task in tasks], name=layer.name
    )


def _fused_pair(
    present: Mapping[str, AdapterStack],
    rows: Mapping[str, slice],
    m: int,
    task: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    parts = list(_factors(present, rows, task))
    if not parts:
        return None
    first = parts[0][2]
    shared = all(np.array_equal(a, first) for _, _, a in parts)
    rank = len(first) if shared else sum(len(a) for _, _, a in parts)
    b, start = np.zeros((m, rank), first.dtype), 0
    for place, factor, _ in parts:
        b[place, start : start + factor.shape[1]] = factor
        start += 0 if shared else factor.shape[1]
    return b, first if shared else np.concatenate([a for _, _, a in parts])


def _factors(
    present: Mapping[str, AdapterStack], rows: Mapping[str, slice], task: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    for name, stack in present.items():
        rank = stack.ranks[task]
        if rank:
            b, a = stack.b[task, :, :rank], stack.a[task, :rank]
            yield rows[name], np.asarray(b), np.asarray(a)
