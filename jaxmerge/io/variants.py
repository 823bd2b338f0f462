"""Options of ``adapter_config.json``: used, harmless, or refused and why.

A config names every option of PEFT, so a key that is unknown here may change what the
tensors mean. It is an error unless its value is empty (None, False, [], {}, "").
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmerge.io.errors import AdapterError, listing, show
from jaxmerge.io.foreign_config import origins
from jaxmerge.refusals import Option

_USED = {
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("fan_in_fan_out", "bias", "lora_bias", "init_lora_weights", "modules_to_save"),
    *("base_model_name_or_path", "revision", "task_type", "init_r"),
    "ensure_weight_tying",
}
_HARMLESS = {  # where adapters go (the tensors say it), how they were trained, versions
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("auto_mapping", "peft_version", "inference_mode", "runtime_config"),
    *("lora_dropout", "eva_config", "loftq_config", "corda_config", "lora_ga_config"),
    *("velora_config", "qalora_group_size", "megatron_core", "merge_weights"),
    *("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2"),
    *("orth_reg_weight", "total_step"),
    *("projection_prng_key", "save_projection", "vera_dropout", "d_initial"),
    "init_weights",
}
_REFUSED = {
    "use_dora": "DoRA rescales the base weight, so its update depends on the base; "
    "merge it into the base and extract a plain LoRA",
    "layer_replication": "it runs on a base with repeated layers; "
    "only adapters of the unchanged base can be merged",
    "megatron_config": "Megatron shards its factors; gather and save them first",
    "use_qalora": "QA-LoRA pools its inputs in groups, so A does not act on the inputs",
    "use_bdlora": "its factors are block diagonal; save it as a plain LoRA",
    "kasa_config": "KaSA truncates the base weight; convert it to a plain LoRA",
    "monteclora_config": "MonteCLoRA samples its factors; save their mean as LoRA",
    "arrow_config": "Arrow routes between adapters at run time; merge the experts",
    "alora_invocation_tokens": "aLoRA acts on some tokens only and cannot be merged",
    "alora_invocation_string": "aLoRA acts on some tokens only and cannot be merged",
    "target_parameters": "LoRA on fused parameters (3-D experts) is not supported; "
    "unfuse the experts into linear layers first",
    "trainable_token_indices": "it trains single embedding rows; "
    "save the adapter without them or merge them into the base",
    "enable_lora": "it is LoRA on parts of a fused layer; split the layer first",
}
_REFUSED_INITS = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
_MOST_NAMED, _LONGEST_NAMED = 60, 80  # unknown options, letters of each
_HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica")


def refuse_variants(
    raw: Mapping[str, Any], path: Path, ignored: Sequence[str] = ()
) -> None:
    """AdapterError if an option makes the update other than ``scale * B A``.

    Args:
      raw: the config.
      path: its file, for messages.
      ignored: unknown keys that the caller knows to be harmless.
    """
    given = [key for key, value in raw.items() if not _is_empty(value)]
    for key in given:
        if key in _REFUSED:
            raise AdapterError(f"{path}: {key} is set: {_REFUSED[key]}")
    known = _USED | _HARMLESS | {*ignored}
    _refuse_unknown([key for key in given if key not in known], path)
    bias = raw.get("bias", "none")
    if bias not in ("none", None, False):
        raise AdapterError(
            f"{path}: bias={show(bias)}: biases of the base were trained too and are "
            "not part of a LoRA update; merge this adapter into the base, or retrain "
            "with bias='none'"
        )
    init = raw.get("init_lora_weights", True)
    if isinstance(init, bool) or init is None or init in _HARMLESS_INITS:
        return
    for prefix, name in _REFUSED_INITS.items():
        if isinstance(init, str) and init.lower().startswith(prefix):
            raise AdapterError(
                f"{path}: init_lora_weights={show(init)}: {name} changed the base "
                "weights too; save it as a plain LoRA first "
                "(save_pretrained(path_initial_model_for_weight_conversion=...))"
            )
    raise AdapterError(f"{path}: unknown init_lora_weights={show(init)}")


def _refuse_unknown(keys: Sequence[str], path: Path) -> None:
    """AdapterError that names all keys at once, unless there are none."""
    if not keys:
        return
    if len(keys) > _MOST_NAMED or max(map(len, keys)) > _LONGEST_NAMED:
        raise AdapterError(
            f"{path}: {len(keys)} unknown options ({', '.join(map(show, keys[:4]))}, "
            f"...){origins(keys)}; this is hardly the config of an adapter, copy it "
            "from where the weights came from"
        )
    one = len(keys) == 1
    options = f"option {keys[0]!r}" if one else f"options {listing(keys, len(keys))}"
    raise AdapterError(
        f"{path}: unknown {options}, which may change what the tensors mean",
        f"{origins(keys)}; if {'it does' if one else 'they do'} not, take ",
        f"{'it' if one else 'them'} out of the config or pass ",
        Option("ignore_config_keys", tuple(keys), quoted=True, listed=True),
    )


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})
