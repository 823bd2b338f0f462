"""``jaxmerge evaluate``: a merge on every task, beside the base and own adapters."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.read_flags import Reading
from jaxmerge.reports.scores import evaluation

if TYPE_CHECKING:
    from jaxmerge.jobs.evaluating import Evaluated


@command(reads=Reading(without=("heads", "allow_zero")))
def evaluate(
    console: Console,
    options: Options,
    *,
    merged: Annotated[Path, typer.Argument()],
    folders: flags.FoldersOrNone = None,
    base: flags.BaseFolder,
    data: flags.LabeledFolder,
    names: flags.Names = None,
    text_heads: flags.TextHeads = None,
    task_type: flags.ModelType = None,
    limit: flags.RowLimit = None,
    batch: flags.BatchSize = 64,
    max_length: flags.MaxLength = None,
    plot: Path | None = None,
    force: bool = False,
) -> None:
    """Measure a merge on labeled data of every task.

    Shows the accuracy of the base, of the own adapter and of the merge, and the latter
    two as a ratio, with 95 % intervals of the paired bootstrap.

    Args:
      merged: Folder of a merged PEFT adapter.
      folders: Adapters of the merge; those of its record unless given.
      plot: File for a plot, as PNG.
      force: Replace the plot.
    """
    from jaxmerge.jobs import evaluating

    found = evaluating.evaluate(**options, progress=console.progress)
    console.show(found, _lines)


def _lines(found: "Evaluated") -> Iterator[Any]:
    yield from evaluation(found.evaluation)
    yield from (f"note: {note}" for note in found.notes)
    yield from (f"wrote {path}" for path in [found.plot] if path)
