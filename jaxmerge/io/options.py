"""How adapters are read: the options that loading, planning and verifying share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jaxmerge.io.errors import AdapterError, show

HeadPolicy = Literal["error", "first", "mean", "keep"]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How adapters are read; `jaxmerge.io.load_peft` documents every field."""

    heads: HeadPolicy = "error"
    assume_alpha: float | Literal["rank"] | None = None
    strip_prefix: str = ""
    add_prefix: str = ""
    allow_different_bases: bool = False
    allow_zero: bool = False
    weights: Literal["safetensors", "bin"] | None = None
    ignore_config_keys: Sequence[str] = ()
    vera_inputs: int | Mapping[str, int] | None = None

    def __post_init__(self):
        check_head_policy(self.heads)
        object.__setattr__(self, "ignore_config_keys", tuple(self.ignore_config_keys))
        if self.weights not in (None, "safetensors", "bin"):
            raise AdapterError(
                f"weights={show(self.weights)}: expected 'safetensors' or 'bin'"
            )


def check_head_policy(policy: str) -> None:
    """AdapterError unless ``policy`` is one of `HeadPolicy`."""
    if policy not in get_args(HeadPolicy):
        raise AdapterError(
            f"heads={show(policy)}: expected one of {', '.join(get_args(HeadPolicy))}"
        )
