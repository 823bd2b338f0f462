"""``adapter_config.json``: what is used, what is harmless, what is refused and why.

PEFT's configs name every option, so a key that is unknown here may change what the
tensors mean. Such a key is an error unless its value is empty (None, False, [], {},
""); keys that PEFT defines are sorted into the tables below.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.files import CONFIG_FILE
from jaxmerge.io.options import checked_alpha

PEFT_TYPES = ("LORA", "ADALORA", "VERA")
_PEFT_INIT_RANK = 12  # AdaLoRA's init_r where the config does not say

_USED = {
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("fan_in_fan_out", "bias", "lora_bias", "init_lora_weights", "modules_to_save"),
    *("base_model_name_or_path", "revision", "task_type", "init_r"),
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
    "ensure_weight_tying": "its factors act on two tied layers at once; "
    "save it with ensure_weight_tying=False",
    "enable_lora": "it is LoRA on parts of a fused layer; split the layer first",
}
_REFUSED_INITS = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
_HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class AdapterConfig:
    """The part of an adapter config that decides what its tensors mean.

    Attributes:
      path: the file, for messages.
      raw: the whole config as read.
      peft_type: "LORA", "ADALORA" or "VERA".
      rank: global r, None if the config has none.
      alpha: global lora_alpha (or the caller's ``assume_alpha``), None for VeRA; the
        string "rank" stands for alpha = rank in every module.
      init_rank: AdaLoRA's ``init_r``, by which it divides whatever the true rank is.
    """

    path: Path
    raw: Mapping[str, Any]
    peft_type: str
    alpha: float | Literal["rank"] | None
    rank: int | None = None
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init_rank: int = 0
    fan_in_fan_out: bool = False
    base_model: str | None = None
    revision: str | None = None
    task_type: str | None = None
    modules_to_save: tuple[str, ...] = ()

    def scale(self, module: str, rank: int) -> float:
        """The factor with which PEFT multiplies ``B A`` of a module of this true rank.

        LoRA: ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA, after the patterns.
        AdaLoRA: ``alpha / (init_r + 1e-5)``. VeRA: 1.
        """
        expected = self._expected_rank(module)
        if expected not in (None, rank):
            raise AdapterError(
                f"{self.path.parent}: module {module!r} has rank {rank} in its tensors "
                f"but {expected} in {CONFIG_FILE}, so its scale is unclear; "
                "correct r, init_r or rank_pattern in the config"
            )
        if self.peft_type == "VERA":
            return 1.0
        nominal = self.init_rank if self.peft_type == "ADALORA" else rank
        pattern = matching_pattern(self.alpha_pattern, module)
        alpha = self.alpha_pattern.get(pattern, self.alpha)
        alpha = nominal if alpha == "rank" else alpha
        if self.peft_type == "ADALORA":
            return alpha / (nominal + 1e-5)
        return alpha / (math.sqrt(nominal) if self.rslora else nominal)

    def _expected_rank(self, module: str) -> int | None:
        if self.peft_type == "ADALORA":
            return self.rank_pattern.get(module, self.init_rank)
        pattern = matching_pattern(self.rank_pattern, module)
        return self.rank_pattern.get(pattern, self.rank)


def matching_pattern(patterns: Sequence[str] | Mapping[str, Any], module: str) -> str:
    """The first pattern that PEFT applies to a module, or "" if there is none.

    A pattern is a regular expression for the end of the name, at a dot.

    >>> matching_pattern(["k_proj", r"layers\\.1\\..*"], "layers.1.q_proj")
    'layers\\\\.1\\\\..*'
    """
    for pattern in patterns:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return pattern
    return ""


def parse_config(
    raw: Mapping[str, Any],
    path: Path,
    *,
    assume_alpha: float | Literal["rank"] | None = None,
    ignore_config_keys: Sequence[str] = (),
) -> AdapterConfig:
    """Checks a config and extracts what decides the meaning of the tensors.

    Args:
      raw: the JSON object.
      path: its file, for messages.
      assume_alpha: lora_alpha where the config has none; "rank" means alpha = rank.
      ignore_config_keys: keys unknown to jaxmerge that the caller knows to be harmless.

    Raises:
      AdapterError: another kind of adapter, a variant that is not ``scale * B A`` on
        the unchanged base, a wrong type, an unknown key, a missing alpha.
    """
    read = _Fields(raw, path)
    peft_type = read.text("peft_type")
    if peft_type not in PEFT_TYPES:
        raise AdapterError(
            f"{path}: peft_type {show(peft_type)} is not a low-rank update that can be "
            f"read here ({', '.join(PEFT_TYPES)}); convert it to LoRA or merge it into "
            "the base"
        )
    _refuse_variants(raw, path, ignore_config_keys)
    adalora = peft_type == "ADALORA"
    alpha = read.number("lora_alpha")
    alpha = assume_alpha if alpha is None else alpha
    if alpha is None and peft_type != "VERA":
        raise AdapterError(
            f"{path}: no lora_alpha, so the scale is unknown; "
            "pass assume_alpha=<number>, or assume_alpha='rank' for a scale of 1"
        )
    if adalora and alpha != "rank" and alpha < 0:
        raise AdapterError(f"{path}: AdaLoRA needs a positive lora_alpha")
    alphas = read.table("alpha_pattern")
    if adalora and alphas:
        raise AdapterError(f"{path}: AdaLoRA does not use alpha_pattern; remove it")
    ranks = read.table("rank_pattern")
    ranks = _kept_ranks(ranks, path) if adalora else _ranks(ranks, path)
    return AdapterConfig(
        path=path,
        raw=raw,
        peft_type=peft_type,
        rank=None if adalora else read.rank("r"),
        alpha=alpha,
        rslora=not adalora and read.flag("use_rslora"),
        rank_pattern=ranks,
        alpha_pattern={
            _checked_pattern(name, path): checked_alpha(
                value, f"{path}: alpha_pattern[{name!r}]"
            )
            for name, value in alphas.items()
        },
        init_rank=(read.rank("init_r") or _PEFT_INIT_RANK) if adalora else 0,
        fan_in_fan_out=read.flag("fan_in_fan_out"),
        base_model=read.text("base_model_name_or_path"),
        revision=read.text("revision"),
        task_type=read.text("task_type"),
        modules_to_save=read.names("modules_to_save"),
    )


def _refuse_variants(
    raw: Mapping[str, Any], path: Path, ignored: Sequence[str]
) -> None:
    for key, value in raw.items():
        if _is_empty(value):
            continue
        if key in _REFUSED:
            raise AdapterError(f"{path}: {key} is set: {_REFUSED[key]}")
        if key not in _USED | _HARMLESS and key not in ignored:
            raise AdapterError(
                f"{path}: unknown option {key!r}, which may change what the tensors "
                f"mean; if it does not, pass ignore_config_keys=[{key!r}]"
            )
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


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _checked_pattern(name: str, path: Path) -> str:
    try:
        re.compile(f"({name})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterError(
            f"{path}: pattern {show(name)} is not a regular expression ({error})"
        ) from error
    return name


def _ranks(table: Mapping[str, Any], path: Path) -> dict[str, int]:
    for name, value in table.items():
        if type(value) is not int or value < 1:
            raise AdapterError(
                f"{path}: rank_pattern[{show(name)}] must be a positive integer, "
                f"found {show(value)}"
            )
    return {_checked_pattern(name, path): value for name, value in table.items()}


def _kept_ranks(table: Mapping[str, Any], path: Path) -> dict[str, int]:
    """AdaLoRA's ``{"<module>.lora_E": [true, false, ...]}`` as ranks by module."""
    ranks = {}
    for name, kept in table.items():
        if not isinstance(kept, list) or not all(isinstance(x, bool) for x in kept):
            raise AdapterError(
                f"{path}: rank_pattern[{show(name)}] must be a list of true and false"
            )
        module = name.removeprefix("base_model.model.").split(".lora_E")[0]
        ranks[module] = sum(kept)
    return ranks


class _Fields:
    """Typed access to a config; a wrong type is an AdapterError that names the key."""

    def __init__(self, raw: Mapping[str, Any], path: Path):
        self._raw = raw
        self._path = path

    def _get(self, key: str, kinds: type | tuple[type, ...], expected: str) -> Any:
        value = self._raw.get(key)
        if value is not None and not isinstance(value, kinds):
            raise AdapterError(
                f"{self._path}: {key} must be {expected}, found {show(value)}"
            )
        return value

    def text(self, key: str) -> str | None:
        return self._get(key, str, "a string") or None

    def flag(self, key: str) -> bool:
        return bool(self._get(key, bool, "true or false"))

    def number(self, key: str) -> float | None:
        value = self._raw.get(key)
        return None if value is None else checked_alpha(value, f"{self._path}: {key}")

    def rank(self, key: str) -> int | None:
        value = self._raw.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise AdapterError(
                f"{self._path}: {key} must be a positive integer, found {show(value)}"
            )
        return value

    def table(self, key: str) -> dict[str, Any]:
        return self._get(key, dict, "an object") or {}

    def names(self, key: str) -> tuple[str, ...]:
        value = self._raw.get(key)
        listed = [value] if isinstance(value, str) else value or []
        if not isinstance(listed, list) or not all(isinstance(x, str) for x in listed):
            raise AdapterError(
                f"{self._path}: {key} must be a list of names, found {show(value)}"
            )
        return tuple(listed)
