"""``jaxmerge plan``: what a merge would meet, from headers alone."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import WouldBeRefused, as_flags
from jaxmerge.cli.flags import Folders, Json, Quiet
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.refusals import Refusal
from jaxmerge.reports.tables import size, span, table

if TYPE_CHECKING:
    from jaxmerge.io import Plan
    from jaxmerge.jobs.planning import Planned


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
    from jaxmerge.jobs import planning

    found = planning.plan(folders, read_tensors=read_tensors, **read)
    show(Console(as_json=as_json, quiet=quiet), found)


def show(console: Console, found: "Planned") -> None:
    """Prints a plan, and for a dry run what would be made of it."""
    console.result(found.to_json(), lambda: _lines(found))
    conflicts = found.plan.conflicts
    if conflicts and console.quiet and not console.as_json:
        raise Refusal(*conflicts[0].message)
    if conflicts:
        count = "1 conflict" if len(conflicts) == 1 else f"{len(conflicts)} conflicts"
        raise WouldBeRefused(f"a merge would be refused, because of {count}")


def _lines(found: "Planned") -> Iterator[Any]:
    plan = found.plan
    if found.recipe is not None:
        yield f"dry run: {found.out} is not written"
        yield f"  pipeline  {found.recipe.pipeline.text}"
    yield _adapter_table(plan)
    yield ""
    yield _coverage_table(plan)
    yield ""
    served, of_peft = plan.max_lora_rank, plan.adapters[0].kind == "peft"
    flag = f"--max-lora-rank {served}" if served else "takes no such rank"
    yield (
        f"output rank {plan.rank} if nothing is truncated"
        + (f" (vLLM: {flag})" if of_peft else "")
    )
    memory = plan.memory
    yield (
        f"memory {size(memory.factors)} for factors, {size(memory.largest_dense)} "
        f"for the largest module in full space, output {size(memory.output)} "
        f"as {plan.dtype}"
    )
    yield from (f"note: {as_flags(note)}" for note in plan.notes)
    yield from (f"conflict: {as_flags(c.message)}" for c in plan.conflicts)


def _adapter_table(found: "Plan") -> Any:
    columns = ("adapter", "base model", "kind", "modules>", "ranks>", "scales>")
    return table(
        (*columns, "dtype", "heads>"),
        [
            (
                a.name,
                a.base_model or "-",
                a.peft_type if a.kind == "peft" else a.kind,
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
        groups[_leaf(name), module.kind, module.shape].append(module)
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


def _leaf(name: str) -> str:
    """The end of a name, by which modules that are alike are counted together.

    >>> _leaf("h.0.fc"), _leaf("lora_unet_mid_block_resnets_0_conv1"), _leaf("unet:3")
    ('fc', 'conv1', 'unet')
    """
    if name.startswith(("lora_", "lycoris_")):
        return re.split(r"_\d+_", name)[-1]
    return name.partition(":")[0].rpartition(".")[2]
