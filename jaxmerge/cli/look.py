"""``jaxmerge plan`` and ``jaxmerge inspect``: what adapters are, before any merge."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console, size, span, table
from jaxmerge.cli.errors import CommandError, as_flags
from jaxmerge.cli.options import Folders, Json, Quiet, task_names, with_read_options
from jaxmerge.cli.runtime import start_jax

if TYPE_CHECKING:
    from jaxmerge.cli.recipe import Recipe
    from jaxmerge.io import Plan


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


@with_read_options
def inspect(
    *,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER...",
            help="PEFT folders, or one orbax checkpoint of jaxmerge.",
        ),
    ],
    read: dict[str, Any],
    modules: Annotated[
        bool, typer.Option("--modules", help="One line for each module.")
    ] = False,
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Folder for plots, as PNG.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="One page with tables and plots.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the page and the plots.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show norms and spectra, and what several adapters have in common."""
    from jaxmerge.cli.report import check_outputs, write_page, write_plots

    check_outputs(plots, html, force=force)
    start_jax()
    from jaxmerge.cli.spectra import summarize

    console = Console(as_json=as_json, quiet=quiet)
    stored = _load(paths, read)
    tasks = summarize(stored)
    found = _findings(stored)
    if found is None and (plots or html):
        raise CommandError("plots and pages need at least two adapters to compare")
    document = {
        "paths": [str(path) for path in paths],
        "tasks": [task.to_json() for task in tasks],
        "diagnostics": None,
    }
    if found is not None:
        from jaxmerge.cli import verdict

        said = verdict.of_all(found.pairs)
        document["diagnostics"] = {"verdict": said, **found.to_json()}
        if plots is not None:
            document["plots"] = [str(path) for path in write_plots(found, plots)]
        if html is not None:
            document["html"] = str(write_page(found, tasks, said, html))

    def lines():
        for task in tasks:
            yield f"{task.name}: {len(task.modules)} modules, norm {task.norm:.4g}"
            if task.base_model or task.dtype:
                yield f"  of {task.base_model or 'an unnamed base'}, {task.dtype}"
            yield task.table(each=modules)
        if found is not None:
            from jaxmerge.cli.comparison import module_table, pair_table

            yield ""
            yield f"{len(found.tasks)} adapters together"
            yield module_table(found, each=modules)
            yield ""
            yield pair_table(found)
            yield ""
            yield f"verdict: {said}"
        yield from (f"wrote {path}" for path in document.get("plots", ()))
        yield from (f"wrote {path}" for path in [document.get("html")] if path)

    console.result(document, lines)


def _load(paths: list[Path], read: dict[str, Any]) -> Any:
    from jaxmerge import io
    from jaxmerge.cli.stored import is_orbax, load_stored

    if len(paths) == 1:
        return load_stored(paths[0], read)
    for path in paths:
        if is_orbax(path):
            raise CommandError(
                f"{path} is an orbax checkpoint; look at one at a time, "
                "or convert its adapters to PEFT folders"
            )
    if read["heads"] == "error":  # nothing is merged, so no policy is needed
        read = {**read, "heads": "keep"}
    return io.load_peft(paths, **read)


def _findings(stored: Any) -> Any:
    """Diagnostics of adapters that can be compared; None for one, or for merges."""
    from jaxmerge.cli.findings import find
    from jaxmerge.io import Adapters
    from jaxmerge.types import AdapterStack

    if isinstance(stored, Adapters):
        names, stacks = stored.names, stored.stacks
    else:
        stacks = {m: v for m, v in stored.items() if isinstance(v, AdapterStack)}
        count = max((len(stack.ranks) for stack in stacks.values()), default=0)
        names = tuple(f"task {task}" for task in range(count))
    return find(names, stacks) if len(names) > 1 else None
