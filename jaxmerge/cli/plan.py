"""``jaxmerge plan``: what a merge would meet, from headers alone."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import CommandError, as_flags
from jaxmerge.cli.options import Folders, Json, Quiet, task_names, with_read_options
from jaxmerge.reports.tables import size, span, table

if TYPE_CHECKING:
    from jaxmerge.io import Plan
    from jaxmerge.jobs.merge_recipe import Recipe


@with_read_options
def plan(
    *,
    folders: Folders,
    read: dict[str, Any],
    read_tensors: Annotated[
        bool,
        typer.Option("--read-tensors", help="Also find zero and non-finite tensors."),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show what a merge would meet.

    Reads headers alone. Exit code 2 if the merge would be refused.
    """
    console = Console(as_json=as_json, quiet=quiet)
    show_plan(console, folders, read, read_tensors=read_tensors)


def show_plan(
    console: Console,
    folders: list[Path],
    read: dict[str, Any],
    *,
    read_tensors: bool = False,
    recipe: "Recipe | None" = None,
    out: Path | None = None,
    names: str | None = None,
) -> None:
    """Prints a plan, and for a dry run what would be made of it."""
    from jaxmerge.io.plan import plan_peft

    found = plan_peft(folders, read_tensors=read_tensors, **read)
    named = task_names(names, tuple(adapter.name for adapter in found.adapters))
    pairs = zip(found.adapters, named, strict=True)
    found = replace(found, adapters=tuple(replace(a, name=name) for a, name in pairs))
    document = found.to_json()
    if recipe is not None:
        from jaxmerge.spec.checks import check_ranks

        check_ranks(
            recipe.pipeline, {name: x.ranks for name, x in found.modules.items()}
        )
        recipe = recipe.for_tasks(named)
        recipe.check_statistics(
            {name: module.shape[1] for name, module in found.modules.items()},
            [adapter.base_model for adapter in found.adapters],
            allow_different_bases=read["allow_different_bases"],
        )
        document |= {"recipe": recipe.to_record(), "out": str(out), "dry_run": True}

    def lines():
        if recipe is not None:
            yield f"dry run: {out} is not written"
            yield f"  pipeline  {recipe.pipeline.text}"
        yield _adapter_table(found)
        yield ""
        yield _coverage_table(found)
        yield ""
        served = found.max_lora_rank
        yield (
            f"output rank {found.rank} if nothing is truncated "
            f"(vLLM: {f'--max-lora-rank {served}' if served else 'takes no such rank'})"
        )
        memory = found.memory
        yield (
            f"memory {size(memory.factors)} for factors, {size(memory.largest_dense)} "
            f"for the largest module in full space, output {size(memory.output)} "
            f"as {found.dtype}"
        )
        yield from (f"note: {as_flags(note)}" for note in found.notes)
        yield from (f"conflict: {as_flags(c.message)}" for c in found.conflicts)

    console.result(document, lines)
    if found.conflicts:
        first, *rest = found.conflicts
        more = f" (and {len(rest)} more conflicts)" if rest else ""
        raise CommandError(first.message + more)


def _adapter_table(found: "Plan") -> Any:
    columns = ("adapter", "base model", "kind", "modules>", "ranks>", "scales>")
    return table(
        (*columns, "dtype", "heads>"),
        [
            (
                a.name,
                a.base_model or "-",
                a.peft_type,
                a.modules,
                span(a.ranks),
                span(a.scales),
                a.dtype,
                len(a.heads) or "-",
            )
            for a in found.adapters
        ],
    )


def _coverage_table(found: "Plan") -> Any:
    """Of the modules of each kind, how many every task adapts, and at which rank."""
    groups = defaultdict(list)
    for name, module in found.modules.items():
        groups[name.rpartition(".")[2], module.kind, module.shape].append(module)
    rows = []
    for (leaf, kind, shape), modules in groups.items():
        cells = []
        for task in range(len(found.adapters)):
            ranks = [m.ranks[task] for m in modules if m.ranks[task]]
            count = f"{len(ranks)}/{len(modules)}"
            cells.append(f"{count} r={span(ranks)}" if ranks else "absent")
        total = span(m.total_rank for m in modules)
        rows.append((f"{leaf} {shape[0]}x{shape[1]}", kind, *cells, total))
    names = [adapter.name for adapter in found.adapters]
    return table(("modules", "kind", *names, "total rank>"), rows)
