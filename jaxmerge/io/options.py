"""How adapters are read: the options that loading, planning and verifying share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from jaxmerge.io.errors import AdapterError, given, show
from jaxmerge.refusals import Option

BridgeName = Literal[  # trees of JAX libraries
    "nnx", "qwix", "tunix", "maxtext-llama", "maxtext-qwen", "gemma", "keras"
]
Layout = Literal["diffusers", BridgeName]  # without a config
ScanAxis = Literal[0, 1, "none"]
Alpha = float | Literal["rank"] | Mapping[str, float | Literal["rank"]]
WeightFile = Literal["safetensors", "bin"]
HeadPolicy = Literal["error", "first", "mean", "keep"]
TaskType = Literal["classification", "causal"]  # of the models that adapters are of


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How adapters are read; `jaxmerge.io.load_peft` documents every field."""

    heads: HeadPolicy = "error"
    assume_alpha: float | Literal["rank"] | None = None
    strip_prefix: str = ""
    add_prefix: str = ""
    allow_different_bases: bool = False
    allow_similar_names: bool = False
    allow_zero: bool = False
    weight_file: WeightFile | None = None
    ignore_config_keys: Sequence[str] = ()
    vera_inputs: int | Mapping[str, int] | None = None
    layout: Layout | None = None
    lora_alpha: Alpha | None = None
    scan_axis: ScanAxis | None = None

    def __post_init__(self) -> None:
        self._check_plain()
        check_head_policy(self.heads)
        if self.assume_alpha not in (None, "rank"):
            checked_alpha(self.assume_alpha, Option("assume_alpha"))
        if self.lora_alpha is not None:
            checked_alphas(self.lora_alpha, Option("lora_alpha"))
        if self.scan_axis not in (None, *get_args(ScanAxis)) or self.scan_axis is True:
            raise AdapterError(
                given("scan_axis", self.scan_axis), ": expected 0, 1 or 'none'"
            )
        if self.layout not in (None, *get_args(Layout)):
            expected = " or ".join(map(repr, get_args(Layout)))
            raise AdapterError(given("layout", self.layout), f": expected {expected}")
        if self.weight_file not in (None, "safetensors", "bin"):
            raise AdapterError(
                given("weight_file", self.weight_file),
                ": expected 'safetensors' or 'bin'",
            )
        sizes = self.vera_inputs
        for size in sizes.values() if isinstance(sizes, Mapping) else [sizes]:
            if size is not None and (type(size) is not int or size < 1):
                option = Option("vera_inputs")
                raise AdapterError(option, f": {show(size)} is not an input size")

    def _check_plain(self) -> None:
        """Refuses values of another type than the default."""
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind in (bool, str) and not isinstance(value, kind):
                expected = "text" if kind is str else "True or False"
                raise AdapterError(given(field.name, value), f": expected {expected}")
        keys: Any = self.ignore_config_keys
        names = isinstance(keys, Iterable) and not isinstance(keys, str | Mapping)
        listed: tuple[Any, ...] = tuple(keys) if names else ()
        if not names or not all(isinstance(name, str) for name in listed):
            raise AdapterError(
                given("ignore_config_keys", keys), ": expected a list of names"
            )
        object.__setattr__(self, "ignore_config_keys", listed)


def recorded_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a record holds them; version 0.1.0 called ``weight_file`` weights.

    >>> recorded_options({"heads": "keep", "weights": None})
    {'heads': 'keep', 'weight_file': None}
    """
    return {"weight_file" if k == "weights" else k: v for k, v in record.items()}


def checked_options(
    record: Mapping[str, Any], where: object, field: str
) -> ReadOptions:
    """The options in one field of a record; AdapterError, which names it, if wrong."""
    options = recorded_options(record)
    for name in options.keys() - {known.name for known in fields(ReadOptions)}:
        raise AdapterError(
            f"{where}: field {field}.{show(name)[1:-1]}: is not an option of reading; "
            "the record was changed, or another version wrote it"
        )
    try:
        return ReadOptions(**options)
    except AdapterError as error:
        raise AdapterError(f"{where}: field {field}: {error}") from error


def check_head_policy(policy: str) -> None:
    """AdapterError unless ``policy`` is one of `HeadPolicy`."""
    if policy not in get_args(HeadPolicy):
        raise AdapterError(
            given("heads", policy),
            f": expected one of {', '.join(get_args(HeadPolicy))}",
        )


def checked_alphas(value: Any, where: str | Option) -> Alpha:
    """Alpha of a tree: a number, "rank", or a table of these by patterns of names."""
    if isinstance(value, Mapping) and value:
        return {str(key): _one_alpha(each, where) for key, each in value.items()}
    return _one_alpha(value, where)


def _one_alpha(value: Any, where: str | Option) -> float | Literal["rank"]:
    return "rank" if value == "rank" else checked_alpha(value, where)


def checked_alpha(value: Any, where: str | Option) -> float:
    """A LoRA alpha as a number; AdapterError unless it is finite and not zero."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AdapterError(where, f" must be a number, found {show(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number == 0:
        raise AdapterError(where, f" must be finite and not zero, found {number}")
    return number
