"""What stands between several opened adapters and their merge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxmerge.io.aliases import Shapes, aliases
from jaxmerge.io.errors import either, listing
from jaxmerge.io.frozen import base_difference
from jaxmerge.io.fused import fused_beside_parts
from jaxmerge.io.mending import Prefixes, mending_prefixes
from jaxmerge.io.module_layout import merged_layout
from jaxmerge.io.opening import OpenAdapter
from jaxmerge.io.options import ReadOptions
from jaxmerge.refusals import Message, Option

_Shapes = dict[str, tuple[int, ...]]  # of saved modules


@dataclass(frozen=True)
class Conflict:
    """One reason not to merge: its kind and a message with the remedy."""

    kind: str  # "base" | "shape" | "layout" | "names" | "fused" | "replaced" | "heads"
    message: Message


def conflicts(adapters: Sequence[OpenAdapter], options: ReadOptions) -> list[Conflict]:
    """Everything that keeps the adapters from being merged under these options."""
    found = [] if options.allow_different_bases else list(_base_conflicts(adapters))
    found += _module_conflicts(adapters)
    shapes = [{m: s.shape for m, s in adapter.specs.items()} for adapter in adapters]
    if not options.allow_similar_names:
        found += _name_conflicts(adapters, shapes, options)
    found += _fused_conflicts(adapters, shapes)
    found += _replaced_conflicts(adapters)
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


def _name_conflicts(
    adapters: Sequence[OpenAdapter], shapes: Sequence[Shapes], options: ReadOptions
) -> Iterator[Conflict]:
    """One conflict for each way in which two adapters name the same modules apart."""
    heads = [list(adapter.heads) for adapter in adapters]
    told: set[frozenset[str]] = set()
    for alias in aliases(shapes):
        before, *parts = alias.changes[0]
        if frozenset((before, *parts)) in told:
            continue
        told.add(frozenset((before, *parts)))
        first, other = (adapters[place] for place in alias.adapters)
        mended: list[Prefixes] = []
        if not (options.strip_prefix or options.add_prefix):
            mended = mending_prefixes(alias, shapes, heads)
        yield _conflict(
            "names",
            f"{first.folder} and {other.folder} seem to name one module in two ways, ",
            f"{alias.names[0]!r} and {alias.names[1]!r}, of which a model has one, so ",
            "that a part of the merge would do nothing; ",
            *_remedies(mended),
            "; if they are different modules, pass ",
            Option("allow_similar_names", "True"),
        )


def _remedies(mended: Sequence[Prefixes]) -> Iterator[str | Option]:
    if not mended:
        yield "no prefix mends that: save one of them again with the names of the other"
    for place, (strip, add) in enumerate(mended):
        yield " or " if place else "pass "
        if strip:
            yield Option("strip_prefix", strip, quoted=True)
        if strip and add:
            yield " "
        if add:
            yield Option("add_prefix", add, quoted=True)


def _fused_conflicts(
    adapters: Sequence[OpenAdapter], shapes: Sequence[Shapes]
) -> Iterator[Conflict]:
    for found in fused_beside_parts(shapes):
        folders = [adapters[place].folder for place in found.adapters]
        if found.whole is None:
            says = "compute the same under two names, of which a model has one"
        else:
            says = (
                f"do not stand in one model: {found.names[found.whole]!r} is a fused "
                f"layer, of which {found.names[1 - found.whole]!r} is a part, and no "
                "file says in which order and sizes it holds its parts"
            )
        yield _conflict(
            "fused",
            f"module {found.names[0]!r} of {folders[0]} and {found.names[1]!r} of ",
            f"{folders[1]} {says}; convert one of them to the layers of the other",
        )


def _replaced_conflicts(adapters: Sequence[OpenAdapter]) -> Iterator[Conflict]:
    """LoRA updates a module that a saved one takes the place of."""
    for saver in adapters:
        saved = {head.rpartition(".")[0]: head for head in saver.heads}
        for adapter in adapters:
            for module in adapter.specs:
                if module in saved:
                    yield _conflict(
                        "replaced",
                        f"module {module!r}: {adapter.folder} updates it by LoRA, ",
                        f"{saver.folder} saves it whole ({saved[module]!r}) and so ",
                        "replaces it, which loses the update; leave it out of one of ",
                        "them, or train it the same way in both",
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
                f"they have no mean{_why(*shapes)}; pass ",
                *either("heads", "keep", "first"),
            )


def _why(mine: _Shapes, theirs: _Shapes) -> str:
    """What saved modules of one name and several lengths stand for."""
    pairs = [(mine[n], theirs[n]) for n in sorted(mine.keys() & theirs.keys())]
    lengths = {(a[0], b[0]) for a, b in pairs if a[1:] == b[1:] and a != b}
    if len(lengths) != 1:
        return ""
    ((one, other),) = lengths
    return f", as their vocabularies or labels are {one} and {other}"


def _conflict(kind: str, *parts: str | Option) -> Conflict:
    return Conflict(kind, Message(parts))


def _head_shapes(adapter: OpenAdapter) -> _Shapes:
    return {n: adapter.tensors.infos[key].shape for n, key in adapter.heads.items()}
