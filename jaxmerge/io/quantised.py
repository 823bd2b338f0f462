"""Quantised weights: their values are no weights, so nothing may be added to them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.tensors import Described
from jaxmerge.refusals import Option

_TENSORS = (  # what a tensor is called, and which format calls it that
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)", "bnb-4"),
    (r"\.(SCB|weight_format)", "bnb-8"),
    (r"\.g_idx", "gptq"),
    (r"\.(qweight|qzeros)", "awq"),
    (r"\.weight_packed", "compressed-tensors"),
    (r"_proj_(blocks|scales)", "mxfp4"),
    (r"\.(weight_scale(_inv)?|input_scale|scale_weight)", "fp8"),
    (r"\.(W_q|_data|_scale|_packed)", "other"),
)
_NAMES = {
    "bnb-4": "4-bit weights of bitsandbytes",
    "bnb-8": "8-bit weights of bitsandbytes",
    "gptq": "GPTQ weights",
    "awq": "AWQ or GPTQ weights",
    "compressed-tensors": "weights packed by compressed-tensors",
    "mxfp4": "MXFP4 weights",
    "fp8": "float8 weights",
    "other": "quantised weights",
}
_LOAD = {  # how transformers gives the weights without quantisation
    "bnb-4": "model.dequantize()",
    "bnb-8": "model.dequantize()",
    "fp8": "quantization_config=FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "quantization_config=Mxfp4Config(dequantize=True)",
}
_UNPACKED = ("bnb-4", "bnb-8", "gptq", "awq")  # what `jaxmerge.io.packed` reads
_INTEGERS = ("int8", "uint8", "int32", "uint32")


def refuse_quantised(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Described],
    *,
    choice: bool = False,
) -> None:
    """AdapterError, which names the format, if a model holds quantised weights.

    Args:
      folder: of the model.
      config: its ``config.json``.
      tensors: what the headers of its files say.
      choice: whether the caller may have them unpacked.
    """
    key, found = _of_tensors(tensors)
    said = _of_config(config)
    if found is None and said is None:
        return
    what = _NAMES.get(found or "", f"weights quantised by {show(said)}")
    where = f"tensor {key!r}" if found else "quantization_config in config.json"
    help_of = _LOAD.get(found or "")
    way = (
        f", or load it in transformers with {help_of} and write that with "
        "save_pretrained"
        if help_of
        else ""
    )
    raise AdapterError(
        f"{folder}: holds {what} ({where}), to which no update can be added exactly; "
        "give the model in 16 or 32 bits that it was quantised from, and quantise the "
        f"result again{way}",
        *_choice(found if choice else None),
    )


def _choice(found: str | None) -> tuple[str | Option, ...]:
    if found not in _UNPACKED:
        return ()
    unpacks = Option("dequantise", "True")
    return ("; or pass ", unpacks, " to take the weights for what they stand for")


def _of_tensors(tensors: Mapping[str, Described]) -> tuple[str, str | None]:
    """A tensor that shows a format, and which."""
    for pattern, kind in _TENSORS:
        ends = re.compile(rf".*{pattern}")
        found = next(filter(ends.fullmatch, tensors), None)
        if found is not None:
            return found, kind
    for key, info in tensors.items():
        if info.dtype.name.startswith("float8"):
            return key, "fp8"
        if key.endswith(".weight") and info.dtype.name in _INTEGERS:
            return key, "other"
    return "", None


def _of_config(config: Mapping[str, Any]) -> str | None:
    """The method that a config names, in whichever of its parts."""
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        found = part.get("quantization_config") or part.get("compression_config")
        if isinstance(found, dict):
            return str(found.get("quant_method") or "an unnamed method")
        if found:
            return str(found)
    return None
