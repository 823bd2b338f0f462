"""``adapter_config.json``: the part that decides what the tensors mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.files import CONFIG_FILE
from jaxmerge.io.foreign_config import foreign_config
from jaxmerge.io.options import checked_alpha
from jaxmerge.io.pattern_table import PatternTable
from jaxmerge.io.variants import refuse_variants
from jaxmerge.io.wrappers import PEFT_PREFIX, unwrapped
from jaxmerge.refusals import Option
from jaxmerge.untrusted.text import is_plain

PEFT_TYPES = ("LORA", "ADALORA", "VERA")
_MOST_SAVED = 1000  # names, each of which is compared with every tensor
_PEFT_INIT_RANK = 12  # AdaLoRA's init_r where the config does not say
_TOO_LARGE = 2**31  # for a rank
_PatternName = Literal["rank_pattern", "alpha_pattern"]


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
      alphas: module -> alpha, of trees that name it for each of their modules.
      init_rank: AdaLoRA's ``init_r``, by which it divides whatever the true rank is.
      ties_weights: ``ensure_weight_tying``: adapters of tied layers are one.
      kind: of the file, "peft" or one of `jaxmerge.io.image.file_kinds.KINDS`.
    """

    path: Path
    raw: Mapping[str, Any]
    peft_type: str
    alpha: float | Literal["rank"] | None
    rank: int | None = None
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    init_rank: int = 0
    fan_in_fan_out: bool = False
    base_model: str | None = None
    revision: str | None = None
    task_type: str | None = None
    modules_to_save: tuple[str, ...] = ()
    ties_weights: bool = False
    kind: str = "peft"

    def scale(self, module: str, rank: int) -> float:
        """The factor with which PEFT multiplies ``B A`` of a module of this true rank.

        LoRA: ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA, after the patterns.
        AdaLoRA: ``alpha / (init_r + 1e-5)``. VeRA: 1.
        """
        expected = self._expected_rank(module)
        if expected not in (None, rank):
            experts = (
                ""
                if self.peft_type != "LORA" or rank % expected
                else f"; if it holds {rank // expected} fused experts (of "
                "target_parameters), it cannot be merged"
            )
            raise AdapterError(
                f"{self.path.parent}: module {module!r} has rank {rank} in its tensors "
                f"but {expected} in {CONFIG_FILE}, so its scale is unclear{experts}; "
                f"{'else ' if experts else ''}"
                "correct r, init_r or rank_pattern in the config"
            )
        if self.peft_type == "VERA":
            return 1.0
        nominal = self.init_rank if self.peft_type == "ADALORA" else rank
        alpha = self.alphas.get(module)
        if alpha is None:
            alpha = self.pattern_value("alpha_pattern", module)
        alpha = self.alpha if alpha is None else alpha
        if alpha is None:
            raise AdapterError(f"{self.path}: no lora_alpha, so the scale is unknown")
        alpha = nominal if alpha == "rank" else alpha
        if self.peft_type == "ADALORA":
            return alpha / (nominal + 1e-5)
        return alpha / (math.sqrt(nominal) if self.rslora else nominal)

    def _expected_rank(self, module: str) -> int | None:
        if self.peft_type == "ADALORA":
            return self.rank_pattern.get(module, self.init_rank)
        rank = self.pattern_value("rank_pattern", module)
        return self.rank if rank is None else rank

    def pattern_value(self, name: _PatternName, module: str) -> Any:
        """What a pattern table says of a module: the value of the first key that fits.

        An entry that does not match as an expression still counts if it is the name.
        None if there is no entry; AdaLoRA's tables are by name.
        """
        table: Mapping[str, Any] = getattr(self, name)
        try:
            key = self._keys[name].first(module) if name in self._keys else None
        except ValueError as error:
            raise AdapterError(f"{self.path}: {name} {error}") from error
        return table.get(module if key is None else key)

    @cached_property
    def _keys(self) -> Mapping[str, PatternTable]:
        tables = {"alpha_pattern": self.alpha_pattern}
        if self.peft_type != "ADALORA":  # whose ranks are by name
            tables["rank_pattern"] = self.rank_pattern
        return {
            name: _compiled(name, table, self.path) for name, table in tables.items()
        }

    def check_patterns(self) -> None:
        """AdapterError for a key of a pattern that cannot be read."""
        _ = self._keys


def _compiled(name: str, table: Mapping[str, Any], path: Path) -> PatternTable:
    try:
        return PatternTable(table)
    except ValueError as error:
        raise AdapterError(f"{path}: {name} {error}") from error


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
    peft_type = read.member("peft_type")
    if peft_type not in PEFT_TYPES:
        raise AdapterError(f"{path}: {_other_kind(raw, peft_type)}")
    refuse_variants(raw, path, ignore_config_keys)
    adalora = peft_type == "ADALORA"
    alpha = read.number("lora_alpha")
    alpha = assume_alpha if alpha is None else alpha
    if alpha is None and peft_type != "VERA":
        raise AdapterError(
            f"{path}: no lora_alpha, so the scale is unknown; pass ",
            Option("assume_alpha", "<number>"),
            ", or ",
            Option("assume_alpha", "rank", quoted=True),
            " for a scale of 1",
        )
    if adalora and alpha is not None and alpha != "rank" and alpha < 0:
        raise AdapterError(f"{path}: AdaLoRA needs a positive lora_alpha")
    alphas = read.table("alpha_pattern")
    if adalora and alphas:
        raise AdapterError(f"{path}: AdaLoRA does not use alpha_pattern; remove it")
    ranks = read.table("rank_pattern")
    ranks = _kept_ranks(ranks, path) if adalora else _ranks(ranks, path)
    config = AdapterConfig(
        path=path,
        raw=raw,
        peft_type=peft_type,
        rank=None if adalora else read.rank("r"),
        alpha=alpha,
        rslora=not adalora and read.flag("use_rslora"),
        rank_pattern=ranks,
        alpha_pattern={
            name: checked_alpha(value, f"{path}: alpha_pattern[{show(name)}]")
            for name, value in alphas.items()
        },
        init_rank=(read.rank("init_r") or _PEFT_INIT_RANK) if adalora else 0,
        fan_in_fan_out=read.flag("fan_in_fan_out"),
        base_model=read.text("base_model_name_or_path"),
        revision=read.text("revision"),
        task_type=read.member("task_type"),
        modules_to_save=read.names("modules_to_save"),
        ties_weights=read.flag("ensure_weight_tying"),
    )
    config.check_patterns()
    return config


def _other_kind(raw: Mapping[str, Any], peft_type: str | None) -> str:
    """What a config is that is none of an adapter that can be read."""
    if peft_type is None:
        return foreign_config(raw) or (
            "no peft_type, so this is not the config of a PEFT adapter; copy "
            f"{CONFIG_FILE} from where the weights came from"
        )
    return (
        f"peft_type {show(peft_type)} is not a low-rank update that can be "
        f"read here ({', '.join(PEFT_TYPES)}); convert it to LoRA or merge it into "
        "the base"
    )


def _ranks(table: Mapping[str, Any], path: Path) -> dict[str, int]:
    return {
        name: _rank(value, f"{path}: rank_pattern[{show(name)}]")
        for name, value in table.items()
    }


def _rank(value: Any, where: str) -> int:
    """A rank, which a program may have written as 4.0."""
    whole = isinstance(value, float) and value.is_integer()
    rank = int(value) if whole else value
    if type(rank) is not int or not 1 <= rank < _TOO_LARGE:
        raise AdapterError(f"{where} must be a positive integer, found {show(value)}")
    return rank


def _kept_ranks(table: Mapping[str, Any], path: Path) -> dict[str, int]:
    """AdaLoRA's ``{"<module>.lora_E": [true, false, ...]}`` as ranks by module."""
    ranks = {}
    for name, kept in table.items():
        if not isinstance(kept, list) or not all(isinstance(x, bool) for x in kept):
            raise AdapterError(
                f"{path}: rank_pattern[{show(name)}] must be a list of true and false"
            )
        module = unwrapped(name).name.removeprefix(PEFT_PREFIX).split(".lora_E")[0]
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
        value = self._get(key, str, "a string") or None
        if value is not None and not (is_plain(value) and len(value) < 1000):
            raise AdapterError(
                f"{self._path}: {key} {show(value)} is a text that cannot be shown"
            )
        return value

    def member(self, key: str) -> str | None:
        """A member of an enumeration, which may be written as ``PeftType.LORA``."""
        text = self.text(key)
        return text and text.rpartition(".")[2].upper()

    def flag(self, key: str) -> bool:
        return bool(self._get(key, bool, "true or false"))

    def number(self, key: str) -> float | None:
        value = self._raw.get(key)
        return None if value is None else checked_alpha(value, f"{self._path}: {key}")

    def rank(self, key: str) -> int | None:
        value = self._raw.get(key)
        return None if value is None else _rank(value, f"{self._path}: {key}")

    def table(self, key: str) -> dict[str, Any]:
        return self._get(key, dict, "an object") or {}

    def names(self, key: str) -> tuple[str, ...]:
        value = self._raw.get(key)
        listed = [value] if isinstance(value, str) else value or []
        if not isinstance(listed, list) or not all(isinstance(x, str) for x in listed):
            raise AdapterError(
                f"{self._path}: {key} must be a list of names, found {show(value)}"
            )
        if len(listed) > _MOST_SAVED:
            raise AdapterError(
                f"{self._path}: {key} lists {len(listed)} names, more than a model has"
            )
        return tuple(listed)
