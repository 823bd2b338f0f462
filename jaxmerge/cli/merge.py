"""``jaxmerge merge``: adapter folders in, one adapter folder out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxmerge.cli import flags, values
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.plan import show
from jaxmerge.cli.read_flags import Reading
from jaxmerge.reports.saved import saved_lines
from jaxmerge.runtime import start_jax

if TYPE_CHECKING:
    from jaxmerge.jobs.merging import Merged

# options of the work, about which nothing is planned
_WORK = {
    *("limit", "batch", "max_length", "task_type", "ragged", "dtype", "chunk"),
    "memory",
}


@command(reads=Reading(), alone=("dry_run",), starts_jax=False)
def merge(
    console: Console,
    options: Options,
    *,
    folders: flags.Folders,
    pipeline: flags.Pipeline,
    out: flags.Out,
    weights: Annotated[
        Any, typer.Option(metavar="W,W,...", parser=values.numbers)
    ] = None,
    leave_out: Annotated[list[str] | None, typer.Option(metavar="TASK@BLOCK")] = None,
    densities: Annotated[
        Any, typer.Option(metavar="D,D,...", parser=values.numbers)
    ] = None,
    seed: flags.SeedOrNone = None,
    stats: flags.Stats = None,
    names: flags.Names = None,
    base: Path | None = None,
    data: Path | None = None,
    limit: flags.Limit = None,
    batch: flags.CountOrNone = None,
    max_length: flags.MaxLength = None,
    task_type: flags.ModelType = None,
    rank: Annotated[Any, typer.Option(metavar="N|auto", parser=values.rank)] = None,
    energy: float | None = None,
    ragged: flags.Ragged = False,
    dense: Literal["error", "truncate", "full"] = "error",
    dtype: flags.Dtype = None,
    chunk: flags.CountOrNone = None,
    memory: Annotated[
        Any, typer.Option(metavar="BYTES", parser=values.byte_count)
    ] = None,
    force: flags.Force = False,
    dry_run: bool = False,
    distributed: flags.Distributed = False,
) -> None:
    """Merge adapters into one PEFT adapter.

    Neither torch nor the base model is needed; methods that use inputs take them from
    statistics, only iteris runs the base. The folder appears complete or not at
    all; an existing one is replaced with --force only.

    Args:
      pipeline: Steps such as 'tsv|core|scale(0.2)', or a name that `jaxmerge methods`
        lists.
      weights: A weight for each adapter.
      leave_out: Leave the adapter of a task out of a block of the model, such as
        cars@encoder.layer.0. Repeatable.
      densities: A density for each adapter, for density=each.
      seed: Seed of the steps that draw at random.
      base: For iteris: Hugging Face folder of the base model.
      data: For iteris: folder with inputs, as for `jaxmerge learn`.
      batch: For iteris: inputs in the model at a time; 16 unless given.
      rank: Truncate to a rank; auto is that of the inputs.
      energy: Truncate, but keep this share of every squared norm.
      dense: Refuse dense results, truncate them, or write weight deltas.
      chunk: Work on this many modules of one shape at a time.
      memory: Bound of the memory for the adapters that are worked on at a time, such
        as 2GB; as little as possible unless given.
      dry_run: Read headers alone and say what would be done.
    """
    from jaxmerge.jobs import merging, planning

    _refuse_loose_numbers(folders, weights)
    if dry_run:
        planned = {k: v for k, v in options.items() if k not in _WORK}
        show(console, planning.plan_merge(**planned))
        return
    start_jax(distributed=distributed)
    found = merging.merge(**options, progress=console.progress)
    console.show(found, merged_lines)


def merged_lines(found: "Merged") -> Iterator[str]:
    """What was merged, for people."""
    pipeline, statistics = found.recipe.pipeline, found.recipe.statistics
    adapters, modules = len(found.adapters), len(found.saved.energy)
    yield f"{found.saved.path}: {adapters} adapters merged, {modules} modules"
    yield f"  pipeline  {pipeline.text}"
    if len(pipeline.calls) > 1:
        yield f"  in order  {', '.join(pipeline.order)}"
    if found.recipe.left_out:
        yield f"  without   {', '.join(found.recipe.left_out)}"
    if statistics is not None:
        yield f"  inputs    statistics in {statistics.path}"
    yield from saved_lines(found)


def _refuse_loose_numbers(
    folders: Sequence[Path], weights: Sequence[float] | None
) -> None:
    """Refuses weights that stand apart, where the shell makes folders of them."""
    loose = [str(f) for f in folders if values.is_number(str(f)) and not f.exists()]
    if loose:
        together = ",".join([*(f"{weight:.15g}" for weight in weights or ()), *loose])
        raise typer.BadParameter(
            f"{', '.join(loose)}: no such folder; if these are weights, write all of "
            f"them as one, --weights {together}",
            param_hint="--weights",
        )
