"""``jaxmerge plan``: what a merge would meet, from headers alone."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import WouldBeRefused, as_flags
from jaxmerge.cli.read_flags import Reading
from jaxmerge.refusals import Refusal
from jaxmerge.reports.plan_tables import adapter_table, coverage_table
from jaxmerge.reports.tables import size

if TYPE_CHECKING:
    from jaxmerge.jobs.planning import Planned


@command(reads=Reading(), starts_jax=False)
def plan(
    console: Console,
    options: Options,
    *,
    folders: flags.Folders,
    read_tensors: bool = False,
) -> None:
    """Show what a merge would meet.

    Reads headers alone. Exit code 2 if the merge would be refused.

    Args:
      read_tensors: Also find zero and non-finite tensors.
    """
    from jaxmerge.jobs import planning

    show(console, planning.plan(**options))


def show(console: Console, found: "Planned") -> None:
    """Prints a plan, and for a dry run what would be made of it."""
    console.show(found, _lines)
    conflicts = found.plan.conflicts
    if conflicts and console.quiet and not console.as_json:
        raise Refusal(*conflicts[0].message)
    if conflicts:
        count = "1 conflict" if len(conflicts) == 1 else f"{len(conflicts)} conflicts"
        raise WouldBeRefused(f"a merge would be refused, because of {count}")


def _lines(found: "Planned") -> Iterator[Any]:
    plan, memory = found.plan, found.plan.memory
    if found.recipe is not None:
        yield f"dry run: {found.out} is not written"
        yield f"  pipeline  {found.recipe.pipeline.text}"
    yield adapter_table(plan)
    yield ""
    yield coverage_table(plan)
    yield ""
    served, of_peft = plan.max_lora_rank, plan.adapters[0].kind == "peft"
    flag = f"--max-lora-rank {served}" if served else "takes no such rank"
    serving = f" (vLLM: {flag})" if of_peft else ""
    yield f"output rank {plan.rank} if nothing is truncated{serving}"
    yield (
        f"memory {size(memory.factors)} for factors, {size(memory.largest_dense)} "
        f"for the largest module in full space, output {size(memory.output)} "
        f"as {plan.dtype}"
    )
    yield from (f"note: {as_flags(note)}" for note in plan.notes)
    yield from (f"conflict: {as_flags(c.message)}" for c in plan.conflicts)
