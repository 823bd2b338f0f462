"""A LoRA adapter in training: its shape, its factors, its PEFT folder."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import ArrayLike
from safetensors.numpy import save_file

from jaxmerge.stats.osrm import kaiming_init
from jaxmerge.types import LowRank

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Factors = dict[str, LowRank]  # of each module as trained: A, and B before the scale


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapter's shape: ``alpha / rank`` scales it, or ``alpha / sqrt(rank)``."""

    rank: int
    alpha: int
    rslora: bool = False
    targets: tuple[str, ...] = ATTENTION

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def lora_shapes(params: Any, targets: Collection[str]) -> dict[str, tuple[int, int]]:
    """Sizes (m, n) of the layers whose names end with one of ``targets``, by name.

    As in PEFT, a target is one or more of the last parts of a name.

    Raises:
      ValueError: a target that names no layer, or a kernel that is not a matrix.
    """
    shapes, missing = {}, set(targets)
    for path, kernel in sorted(flatten_dict(params, sep=".").items()):
        module = path.removeprefix("params.").removesuffix(".kernel")
        named = {t for t in targets if f".{module}".endswith(f".{t}")}
        if not path.endswith(".kernel") or not named:
            continue
        if kernel.ndim != 2:
            raise ValueError(f"{module}: its kernel {kernel.shape} is not a matrix")
        shapes[module] = kernel.shape[::-1]
        missing -= named
    if missing:
        raise ValueError(f"no layer of the model is named {', '.join(sorted(missing))}")
    return shapes


def initial_factors(
    shapes: Mapping[str, tuple[int, int]],
    rank: int,
    key: jax.Array,
    *,
    a: Mapping[str, ArrayLike] | None = None,
) -> Factors:
    """PEFT's initialisation, A uniform within 1 / sqrt(n) and B zero, or a given A.

    Args:
      shapes: (m, n) of each module.
      rank: rank of every module.
      key: of the random draws.
      a: module -> A [rank, n], for all modules.

    Raises:
      ValueError: ``a`` is of other modules or shapes.
    """
    if a is not None and set(a) != set(shapes):
        differing = ", ".join(sorted(set(a) ^ set(shapes)))
        raise ValueError(f"A must be given for exactly the target modules: {differing}")
    factors = {}
    for name, (m, n) in shapes.items():
        key, drawn = jax.random.split(key)
        if a is None:
            first = kaiming_init(drawn, rank=rank, n=n)
        else:
            first = jnp.asarray(a[name], jnp.float32)
        if first.shape != (rank, n):
            raise ValueError(f"{name}: A is {first.shape}, expected {(rank, n)}")
        factors[name] = LowRank(b=jnp.zeros((m, rank), jnp.float32), a=first)
    return factors


def scaled(factors: Factors, lora: Lora) -> Factors:
    """The updates that trained factors stand for: the scale folded into B."""
    return {name: LowRank(b=lora.scale * b, a=a) for name, (b, a) in factors.items()}


def save_adapter(
    folder: Path,
    factors: Factors,
    lora: Lora,
    *,
    base: str,
    classifier: Mapping[str, ArrayLike] | None = None,
    causal: bool = False,
) -> None:
    """Writes one adapter as PEFT does: the factors as trained, the scale in alpha.

    ``adapter_config.json`` comes last, so that a folder with it is complete.

    Args:
      folder: to write into.
      factors: of each module, as trained.
      lora: shape and scale.
      base: what the adapter says its base model is.
      classifier: head that is saved with it, ``kernel`` [d, C] and ``bias`` [C].
      causal: say that it is of a causal language model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    tensors = {}
    for name, (b, a) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.asarray(a)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.asarray(b)
    if classifier is not None:
        weight = np.ascontiguousarray(np.asarray(classifier["kernel"]).T)
        tensors["base_model.model.classifier.weight"] = weight
        tensors["base_model.model.classifier.bias"] = np.asarray(classifier["bias"])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else "SEQ_CLS" if classifier else None,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "target_modules": list(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None if classifier is None else ["classifier"],
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
