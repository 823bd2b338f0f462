"""Weights in formats of other tools: named, with what makes a PEFT folder of them."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from jaxmerge.io.foreign_config import mlx_advice

_MOST, _LONGEST = 2000, 300  # names that are looked at, letters of each
_BY_DIFFUSERS = (
    "load it with diffusers, pipe.load_lora_weights(file, adapter_name='default'), "
    "and write pipe.unet.peft_config['default'] and "
    "peft.get_peft_model_state_dict(pipe.unet) as adapter_config.json and "
    "adapter_model.safetensors; the same for a transformer or a text encoder"
)
_ALONE = (
    "which has no adapter_config.json: give the file itself, or take the config out of "
    "its folder"
)
_BY_TORCHTUNE = (
    "torchtune's FullModelHFCheckpointer writes adapter_model.safetensors (or .bin) "
    "and adapter_config.json beside it; give the folder that holds these"
)


class _Format(NamedTuple):
    """One format: what it is and what to do, told by a pattern of names."""

    pattern: re.Pattern[str]
    says: str


def _formats(table: dict[str, str]) -> tuple[_Format, ...]:
    return tuple(_Format(re.compile(pattern), says) for pattern, says in table.items())


# the whole key of at least one tensor; none of them is a key of PEFT
_KEYS = _formats(
    {
        r"\w+:\d+:(up|down)": "a file of numbered modules (cloneofsimo/lora), "
        + _ALONE,
        r"w_[ab]_\d+": "a Sam_LoRA file lacks the biases that its factors were trained "
        "with, so it is not the whole adapter; train it again with PEFT",
        r"(lycoris|lora)_\w+\.(hada|lokr|oft|boft|glora|on_input|diff)\w*.*": "a "
        "LyCORIS file, whose updates (LoHa, LoKr, ...) are not B A; merge it into its "
        "base and extract a plain LoRA",
        r"lora_[a-z]+\d?_\w+\.(lora_(down|up|mid)\.weight|alpha|dora_scale)": "a file "
        "of kohya's sd-scripts, " + _ALONE,
        r".+\.processor\.(qkv|proj)_lora\d\.(down|up)\.weight": "an XLabs file (FLUX); "
        + _BY_DIFFUSERS,
        r".+\.(lora|lora_linear_layer)\.(down|up)\.weight": "a file of diffusers in "
        "its layout before PEFT (lora.down and lora.up), whose names begin with no "
        f"component of a pipeline, such as unet., or {_ALONE.removeprefix('which ')}",
        r"diffusion_model\..+\.lora_\w+(\.\w+)*": "a ComfyUI file (names start with "
        "diffusion_model.); " + _BY_DIFFUSERS,
        r".+\.lora_(down|up)(\.\w+)*\.weight": "a file of a diffusion trainer "
        "(lora_down and lora_up are A and B); " + _BY_DIFFUSERS,
        r"(decoder\.)?layers\.\d+\.(attn|mlp)\..+\.lora_[ab]\.weight": "torchtune's "
        "own layout; " + _BY_TORCHTUNE,
        r".+\.lora_[ab]": "an MLX adapter (mlx-lm); " + mlx_advice({}),
        r".+\.loras\.\w+\.lora_[AB]": "an adapter of the library `adapters` "
        "(AdapterHub); load it there and write its lora_A and lora_B with PEFT",
        r".+\.(adapter_layer\.\w+|adapter)\.linear_(in|out)\.weight": "an adapter of "
        "NeMo (Megatron); export it to the Hugging Face format with NeMo",
    }
)

# of keys that PEFT may have too, where there is no config beside them
_KEYS_ALONE = _formats(
    {
        r".+\.lora_[AB]": "a loralib or LitGPT file, which holds no alpha; write "
        "adapter_config.json with the r and lora_alpha of its training and name the "
        "tensors as PEFT does",
    }
)

_FILES = _formats(
    {
        r".+\.gguf": "a file of llama.cpp; give the PEFT folder that it was made from",
        r"(\d+_)?adapters\.(npz|safetensors)": "an MLX adapter (mlx-lm); "
        + mlx_advice({}),
        r"adapter_(\d+|model)\.pt": "torchtune's own layout; " + _BY_TORCHTUNE,
        r"lit_model\.pth(\.lora)?": "a LitGPT checkpoint; merge it into its model with "
        "`litgpt merge_lora` and extract a plain LoRA, or train with PEFT",
        r"pytorch_adapter\.bin": "an adapter of the library `adapters` (AdapterHub); "
        "load it there and write its lora_A and lora_B with PEFT",
        r"global_step\d+|zero_pp_rank_.+|mp_rank_.+|zero_to_fp32\.py": "a checkpoint "
        "of DeepSpeed whose weights are still in shards; gather them with its "
        "zero_to_fp32.py and save the adapter with PEFT",
        r".+\.distcp": "a distributed checkpoint of torch whose weights are still in "
        "shards; load it where it was trained and save the adapter with PEFT",
        r"delta\.safetensors": "weight deltas of a merge in full space, to be added "
        "to the base weights; they are not an adapter",
        r"(model|pytorch_model|consolidated)([-.].+)?\.(safetensors|bin|pth)"
        r"(\.index\.json)?": "the weights of a whole model; give the adapter that was "
        "trained on it",
    }
)


def format_of_keys(keys: Iterable[str], *, alone: bool = False) -> str:
    """The format whose keys these are, and what to do; "" if it may be PEFT's.

    Args:
      keys: tensor names.
      alone: whether there is no config beside the file.

    >>> format_of_keys(["lora_unet_mid_block_fc.lora_up.weight"])[:28]
    "a file of kohya's sd-scripts"
    """
    formats = _KEYS + (_KEYS_ALONE if alone else ())
    return next((says for _, says in _matches(formats, keys)), "")


def format_of_files(names: Iterable[str]) -> tuple[str, str] | None:
    """The name that tells a format, and what that is and what to do."""
    return next(_matches(_FILES, names), None)


def format_of_file(name: str) -> str:
    """The format that the name of a file tells, and what to do; "" if it tells none."""
    found = format_of_files([name])
    return found[1] if found else ""


def _matches(
    formats: Iterable[_Format], names: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Some of the names are enough, as those of one format are alike."""
    some = [name for name in islice(names, _MOST) if len(name) <= _LONGEST]
    return (
        (name, found.says)
        for found in formats
        for name in some
        if found.pattern.fullmatch(name)
    )
