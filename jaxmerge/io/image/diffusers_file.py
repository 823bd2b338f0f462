"""LoRA files of diffusers: modules of several components under their own names.

``unet.<module>.lora_A.weight`` is A and ``lora_B`` is B of a module of the UNet; other
components are ``transformer``, ``text_encoder`` and so on. Older files say
``lora.down`` and ``lora.up``, or ``lora_linear_layer``, or, of an attention layer,
``processor.to_k_lora.down``. The scale is that of the PEFT configs in the header
(``lora_adapter_metadata``), or alpha / r of the tensor ``<module>.alpha``, or 1.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.io.config import AdapterConfig, parse_config
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.image.image_keys import ImageKeys, refuse_key
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.tensors import TensorFile
from jaxmerge.untrusted.json_text import parse_json

METADATA = "lora_adapter_metadata"  # in the header: PEFT's configs as JSON
COMPONENTS = (
    "unet",
    "transformer",
    "transformer_2",
    "prior",
    "controlnet",
    *tuple(f"text_encoder{number}" for number in ("", "_2", "_3", "_4")),
)
_COMPONENT = re.compile(rf"(?:{'|'.join(COMPONENTS)})\.")
_BARE = {  # how modules begin in a file of one component that does not name it
    "unet": re.compile(r"(down_blocks|up_blocks|mid_block)\."),
    "transformer": re.compile(r"(single_)?transformer_blocks\."),
}
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<leaf>lora_A|lora_B|lora\.down|lora\.up"
    r"|lora_linear_layer\.down|lora_linear_layer\.up)(?:\.default)?\.(?P<end>weight|bias)"
)
_OLD = re.compile(
    r"(?P<parent>.+)\.to_(?P<layer>q|k|v|out)_lora\.(?P<part>down|up)\.weight"
)
# newer versions of transformers leave out this level, and diffusers loads either name
_CLIP = re.compile(
    r"(text_encoder(?:_2)?)\.(encoder\.layers\.\d+\.(?:self_attn|mlp)\.)"
)
_PARTS = {"lora_A": "A", "lora_B": "B", "down": "A", "up": "B"}


def recognises(keys: Collection[str]) -> bool:
    """Whether factors of diffusers are among the tensor names."""
    return any(_place(key) is not None for key in keys if not key.endswith(".alpha"))


def sort_tensors(tensors: TensorFile, options: ReadOptions) -> ImageKeys:
    """Sorts the tensors of a file; AdapterError for one that is not understood."""
    table = ImageKeys()
    for key in tensors.infos:
        place = _place(key)
        if place is None:
            raise refuse_key(key, tensors)
        module = _CLIP.sub(r"\1.text_model.\2", place[0])
        table.enter(module, place[1], key, tensors)
        table.named[module] = place[0]
    found = {module.partition(".")[0] for module in table.modules}
    if METADATA in tensors.metadata:
        if table.alphas:
            raise AdapterError(
                f"{tensors.path}: has alphas both in its header ({METADATA}) and as "
                f"tensors ({listing(table.alphas.values())}), which diffusers refuses; "
                "save it with one of them"
            )
        table.components = _configs(tensors, sorted(found), options)
    return table


def to_tensors(
    modules: Mapping[str, Mapping[str, np.ndarray]], _header: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and header of a file without alphas, which every loader scales by 1.

    Args:
      modules: module -> tensors by PEFT's name below it. The ranks of a component have
        to be the same, as diffusers 0.36 and older scale other ones wrongly.
    """
    ranks: dict[str, set[int]] = {}
    for module, parts in modules.items():
        if "lora_A.weight" not in parts:
            raise AdapterError(
                f"module {module!r}: diffusers loads no LoRA on embeddings; leave this "
                "module out"
            )
        component = module.partition(".")[0]
        if component not in COMPONENTS:
            raise AdapterError(
                f"module {module!r}: names no component of a pipeline "
                f"({', '.join(COMPONENTS)}); put one in front of the names"
            )
        ranks.setdefault(component, set()).add(parts["lora_A.weight"].shape[0])
    if any(len(found) > 1 for found in ranks.values()):
        raise AdapterError(
            "a diffusers file of several ranks is scaled in other ways by older "
            "versions of diffusers; write one rank for all modules (ragged=False)"
        )
    found = {
        f"{module}.{leaf}": value
        for module, parts in modules.items()
        for leaf, value in parts.items()
    }
    return found, {}


def _place(key: str) -> tuple[str, str] | None:
    """(module, part) of a tensor; None if it is no part of a LoRA of diffusers."""
    component = next((c for c, start in _BARE.items() if start.match(key)), None)
    if component is not None:
        key = f"{component}.{key}"
    if not _COMPONENT.match(key):
        return None
    if key.endswith(".alpha"):
        name = key.removesuffix(".alpha")
        below = _place(f"{name}.down.weight")  # of to_q_lora, lora, ..
        return (below[0] if below else name), "alpha"
    old = _OLD.fullmatch(key)
    if old is not None:
        module = _old_module(old["parent"], old["layer"])
        return None if module is None else (module, _PARTS[old["part"]])
    match = _FACTOR.fullmatch(key)
    if match is None:
        return None
    part = _PARTS[match["leaf"].rpartition(".")[2]]
    if match["end"] == "bias":
        part = "bias" if part == "B" else ""
    return (match["module"], part) if part else None


def _old_module(parent: str, layer: str) -> str | None:
    """The layer of an attention that its processor adapted."""
    if parent.startswith("text_encoder"):
        return f"{parent}.{layer}_proj"
    if not parent.endswith(".processor"):
        return None
    layer = "to_out.0" if layer == "out" else f"to_{layer}"
    return f"{parent.removesuffix('.processor')}.{layer}"


def _configs(
    tensors: TensorFile, components: Sequence[str], options: ReadOptions
) -> dict[str, AdapterConfig]:
    """The PEFT config of each component, from the header."""
    where = tensors.path / METADATA
    try:
        raw = parse_json(tensors.metadata[METADATA].encode())
    except ValueError as error:
        raise AdapterError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{where}: expected a JSON object")
    named = any(_COMPONENT.match(key) for key in raw)
    configs = {}
    for component in components:
        mine: dict[str, Any] = {
            key.removeprefix(f"{component}."): value
            for key, value in raw.items()
            if not named or key.startswith(f"{component}.")
        }
        if not mine or (not named and len(components) > 1):
            raise AdapterError(
                f"{where}: says nothing of {component!r}, so the scale of its modules "
                "is unknown; save the file again with the config of each component"
            )
        configs[component] = parse_config(
            {"peft_type": "LORA", **mine},
            where / component,
            ignore_config_keys=options.ignore_config_keys,
        )
    return configs
