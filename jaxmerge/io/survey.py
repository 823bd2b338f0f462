"""What stands between several opened adapters and their merge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from jaxmerge.io.errors import either, listing
from jaxmerge.io.factors import merged_layout
from jaxmerge.io.frozen import base_difference
from jaxmerge.io.opening import OpenAdapter
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.prefixes import common_prefix_change
from jaxmerge.refusals import Message, Option


@dataclass(frozen=True)
class Conflict:
    """One reason not to merge: its kind and a message with the remedy."""

    kind: str  # "base" | "shape" | "layout" | "heads" | "names"
    message: Message


def conflicts(adapters: Sequence[OpenAdapter], options: ReadOptions) -> list[Conflict]:
    """Everything that keeps the adapters from being merged under these options."""
    found = [] if options.allow_different_bases else list(_base_conflicts(adapters))
    found += _module_conflicts(adapters)
    found += _name_conflicts(adapters)
    found += _head_conflicts(adapters, options.heads)
    return found


def _base_conflicts(adapters: Sequence[OpenAdapter]) -> Iterator[Conflict]:
    known = [adapter for adapter in adapters if adapter.config.base_model]
    for first, other in zip(known[:1] * len(known), known, strict=True):
        mine, theirs = first.config, other.config
        names = [(c.base_model or "").rstrip("/") for c in (mine, theirs)]
        revisions = {mine.revision, theirs.revision} - {None}
        if names[0] == names[1] and len(revisions) < 2:
            continue
        alike = names[0].rpartition("/")[2] == names[1].rpartition("/")[2]
        hint = "; the names look like one model" if alike else ""
        at = [
            f"{n!r}" + (f" (revision {c.revision!r})" if c.revision else "")
            for n, c in zip(names, (mine, theirs), strict=True)
        ]
        yield _conflict(
            "base",
            f"{other.folder}: adapter of {at[1]}, but {first.folder} is of {at[0]}",
            f"{hint}; if the base weights are the same, pass ",
            Option("allow_different_bases", "True"),
        )


def _module_conflicts(adapters: Sequence[OpenAdapter]) -> Iterator[Conflict]:
    owners: dict[str, OpenAdapter] = {}
    for adapter in adapters:
        for module, spec in adapter.specs.items():
            first = owners.setdefault(module, adapter)
            other = first.specs[module]
            if other.shape != spec.shape:
                yield _conflict(
                    "shape",
                    f"module {module!r}: {first.folder} adapts a matrix {other.shape}, "
                    f"{adapter.folder} one of {spec.shape}; "
                    + base_difference(module, other, spec),
                )
            elif merged_layout([other.layout, spec.layout]) is None:
                yield _conflict(
                    "layout",
                    f"module {module!r}: {other.layout.kind} {other.layout.kernel} "
                    f"in {first.folder}, {spec.layout.kind} {spec.layout.kernel} in "
                    f"{adapter.folder}; they belong to different base models",
                )


def _name_conflicts(adapters: Sequence[OpenAdapter]) -> Iterator[Conflict]:
    for first, other in combinations(adapters, 2):
        if first.specs.keys() & other.specs.keys():
            continue
        for short, long in ((first, other), (other, first)):
            prefix = common_prefix_change(short.specs, long.specs)
            if prefix:
                yield _conflict(
                    "names",
                    f"{first.folder} and {other.folder} share no module name, but ",
                    f"those of {long.folder} are those of {short.folder} behind ",
                    f"{prefix!r}; pass ",
                    Option("strip_prefix", prefix, quoted=True),
                    " or ",
                    Option("add_prefix", prefix, quoted=True),
                )


def _head_conflicts(adapters: Sequence[OpenAdapter], policy: str) -> Iterator[Conflict]:
    carriers = [adapter for adapter in adapters if adapter.heads]
    if policy == "error" and carriers:
        others = f", as do {len(carriers) - 1} others" if carriers[1:] else ""
        yield _conflict(
            "heads",
            f"{carriers[0].folder}: holds saved modules besides LoRA ",
            f"({listing(carriers[0].heads)}){others}; pass ",
            Option("heads", "keep", quoted=True),
            " (one file per task), ",
            *either("heads", "first", "mean"),
        )
    if policy != "mean":
        return
    for other in carriers[1:]:
        shapes = [_head_shapes(adapter) for adapter in (carriers[0], other)]
        if shapes[0] != shapes[1]:
            different = sorted(dict(shapes[0].items() ^ shapes[1].items()))
            yield _conflict(
                "heads",
                f"{other.folder}: its saved modules differ from those of ",
                f"{carriers[0].folder} in name or shape ({listing(different)}), so ",
                "they have no mean; pass ",
                *either("heads", "keep", "first"),
            )


def _conflict(kind: str, *parts: str | Option) -> Conflict:
    return Conflict(kind, Message(parts))


def _head_shapes(adapter: OpenAdapter) -> dict[str, tuple[int, ...]]:
    return {n: adapter.tensors.infos[key].shape for n, key in adapter.heads.items()}
