"""The ``adapter_config.json`` that is written: few fields, read alike everywhere."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmerge.io.adapters import Adapters
from jaxmerge.io.card import is_hub_id

# PEFT looks for the classifier of these in the weight file, listed or not.
_TASKS_WITH_A_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def output_config(
    ranks: Mapping[str, int],
    like: Adapters,
    *,
    modules_to_save: Sequence[str] = (),
    lora_bias: bool = False,
) -> dict[str, Any]:
    """Config of an adapter whose tensors already are the update: alpha = r everywhere.

    Fields that PEFT added later are written only where they are needed, because
    versions up to 0.12 do not load a config with a field that they do not know.

    Args:
      ranks: module -> rank of its tensors; if they differ, ``rank_pattern`` and
        ``alpha_pattern`` name every module.
      like: the merged adapters.
      modules_to_save: modules besides LoRA that the weight file holds. Without any,
        a task type whose classifier PEFT would look for there is left out.
      lora_bias: whether the file holds LoRA biases.
    """
    common = Counter(ranks.values()).most_common(1)[0][0]
    base, revision = _base_model(like)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _task_type(like, with_head=bool(modules_to_save)),
        "base_model_name_or_path": base,
        "revision": revision,
        "r": common,
        "lora_alpha": common,
        "target_modules": _target_modules(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(
            like.layouts[module].fan_in_fan_out in (True, None) for module in ranks
        ),
        "inference_mode": True,
        "use_rslora": False,
    }
    if len(set(ranks.values())) > 1:
        # PEFT takes the first pattern that matches the end of a name: longest first.
        ordered = sorted(ranks, key=lambda module: (-len(module), module))
        pattern = {re.escape(module): ranks[module] for module in ordered}
        config |= {"rank_pattern": pattern, "alpha_pattern": dict(pattern)}
    if modules_to_save:
        config["modules_to_save"] = list(modules_to_save)
    if lora_bias:
        config["lora_bias"] = True
    return config


def _task_type(like: Adapters, *, with_head: bool) -> str | None:
    """Task type of the inputs, if they agree and PEFT can load the file as that."""
    types = {source.task_type for source in like.sources}
    common = types.pop() if len(types) == 1 else None
    return common if with_head or common not in _TASKS_WITH_A_HEAD else None


def _base_model(like: Adapters) -> tuple[str | None, str | None]:
    """Base model and revision of the first input that names one, Hub ids first."""
    named = [source for source in like.sources if source.base_model]
    named.sort(key=lambda source: not is_hub_id(source.base_model))
    return (named[0].base_model, named[0].revision) if named else (None, None)


def _target_modules(modules: Mapping[str, int]) -> list[str]:
    """Full names of the adapted modules, as PEFT reaches them.

    It reaches ``x.base_layer.out_proj`` of an attention through x.
    """
    return sorted(module for module in modules if ".base_layer." not in module)
