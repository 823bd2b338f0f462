"""Weight files without a config: LoRA files of image models, and one older layout.

Files of image models are read by `jaxmerge.io.image`. With ``layout="diffusers"`` old
*attention processors* (``pytorch_lora_weights.*``, diffusers 0.12 to 0.20) are a PEFT
adapter of the UNet instead:
``<attention>.processor.to_k_lora.down.weight`` is A of the module ``<attention>.to_k``
and ``up`` is its B; ``to_out_lora`` belongs to ``<attention>.to_out.0``. The update is
``alpha / r * up @ down``. The files hold no alpha, so the caller gives it: the trainers
of that time had none, which is ``assume_alpha="rank"``, a scale of 1.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmerge.io.config import AdapterConfig
from jaxmerge.io.errors import AdapterError, either, listing
from jaxmerge.io.files import CONFIG_FILE, checked_file
from jaxmerge.io.foreign import format_of_file, format_of_files, format_of_keys
from jaxmerge.io.image.file_kinds import WEIGHT_FILES, kind_of_keys, sort_file
from jaxmerge.io.keys import KeyTable
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.tensors import TensorFile, open_tensors
from jaxmerge.refusals import Option

_OWN = {os.path.splitext(name)[0] for name in WEIGHT_FILES}
_SUFFIXES = {"safetensors": ".safetensors", "bin": ".bin"}
_DIFFUSERS = re.compile(
    r"(?P<parent>.+)\.processor\.(?P<layer>to_(?:q|k|v|out))_lora\."
    r"(?P<part>down|up)\.weight"
)


def open_without_config(
    folder: Path, options: ReadOptions
) -> tuple[AdapterConfig, TensorFile, KeyTable]:
    """Opens a folder that has no ``adapter_config.json``, if its layout is readable.

    Args:
      folder: holds one weight file, or one per format if ``options.weight_file``
        chooses.
      options: how it is read.

    Raises:
      AdapterError: what the file is, why it is not read, and what to do.
    """
    missing = f"{folder}: no {CONFIG_FILE}"
    try:
        tensors = open_tensors(_only_weight_file(folder, options.weight_file))
    except AdapterError as error:
        told = format_of_files(sorted(os.listdir(folder)))
        if told:
            raise AdapterError(f"{folder / told[0]}: {told[1]}") from error
        raise AdapterError(
            f"{missing}, and no other readable adapter (", *error.message, ")"
        ) from error
    return _sorted(tensors, options, missing)


def open_weight_file(
    path: Path, options: ReadOptions
) -> tuple[AdapterConfig, TensorFile, KeyTable]:
    """Opens a LoRA file of an image model that was given itself, without a folder."""
    return _sorted(open_tensors(checked_file(path)), options, f"{path}: a single file")


def _sorted(
    tensors: TensorFile, options: ReadOptions, missing: str
) -> tuple[AdapterConfig, TensorFile, KeyTable]:
    if options.layout == "diffusers":
        return _old_processors(tensors, options, missing)
    kind = kind_of_keys(tensors.infos.keys())
    if kind is not None:
        config, table = sort_file(kind, tensors, options)
        return config, tensors, table
    says = format_of_keys(tensors.infos, alone=True)
    says = says or format_of_file(tensors.path.name)
    if says:
        raise AdapterError(f"{tensors.path}: {says}")
    raise AdapterError(_unknown(missing))


def _unknown(missing: str) -> str:
    return (
        f"{missing}, without which the scale and the kind of adapter are unknown; "
        "copy it from where the weights came from"
    )


def _old_processors(
    tensors: TensorFile, options: ReadOptions, missing: str
) -> tuple[AdapterConfig, TensorFile, KeyTable]:
    says = format_of_keys(tensors.infos, alone=True)
    if says:
        raise AdapterError(f"{tensors.path}: {says}")
    if not any(_DIFFUSERS.fullmatch(key) for key in tensors.infos):
        raise AdapterError(_unknown(missing))
    if options.assume_alpha is None:
        raise AdapterError(
            f"{missing}; the keys are of old diffusers attention processors, which ",
            "hold no alpha: pass ",
            Option("assume_alpha", "<number>"),
            " (",
            Option("assume_alpha", "rank", quoted=True),
            " for a scale of 1)",
        )
    return _config(tensors.path, options), tensors, _diffusers_keys(tensors)


def _only_weight_file(folder: Path, choice: str | None) -> Path:
    suffixes = [_SUFFIXES[choice]] if choice else list(_SUFFIXES.values())
    names = sorted(n for n in os.listdir(folder) if os.path.splitext(n)[1] in suffixes)
    if not names:
        raise AdapterError("the folder holds no weight file")
    own = [name for name in names if os.path.splitext(name)[0] in _OWN]
    names = own if len(own) == 1 else names  # of the others a note tells
    if len(names) > 1:
        raise AdapterError(
            f"the folder holds several weight files: {listing(names)}; give the file ",
            "itself if it is of an image model, give each a folder of its own, or ",
            "choose the format with ",
            *either("weight_file", "safetensors", "bin"),
        )
    return checked_file(folder / names[0])


def _diffusers_keys(tensors: TensorFile) -> KeyTable:
    table = KeyTable()
    for key in tensors.infos:
        match = _DIFFUSERS.fullmatch(key)
        if match is None:
            raise AdapterError(f"{tensors.path}: tensor {key!r} is not understood")
        layer = "to_out.0" if match["layer"] == "to_out" else match["layer"]
        parts = table.modules.setdefault(f"{match['parent']}.{layer}", {})
        parts["A" if match["part"] == "down" else "B"] = key
    return table


def _config(path: Path, options: ReadOptions) -> AdapterConfig:
    raw: Mapping[str, Any] = {
        "layout": "diffusers",
        "assumed_alpha": options.assume_alpha,
    }
    return AdapterConfig(
        path=path,
        raw=raw,
        peft_type="LORA",
        alpha=options.assume_alpha,
    )
