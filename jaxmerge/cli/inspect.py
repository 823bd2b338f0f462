"""``jaxmerge inspect``: what adapters are and have in common, before any merge."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge import reports
from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.read_flags import Reading

if TYPE_CHECKING:
    from jaxmerge.jobs.inspecting import Inspected


@command(reads=Reading(), alone=("modules",))
def inspect(
    console: Console,
    options: Options,
    *,
    paths: flags.Folders,
    modules: bool = False,
    plots: Path | None = None,
    html: Path | None = None,
    force: bool = False,
    base: Path | None = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --base: folder with the inputs of each adapter, labels ignored: "
            + flags.DATA_FILES
        ),
    ] = None,
    names: flags.Names = None,
    text_heads: flags.TextHeads = None,
    task_type: flags.ModelType = None,
    batch: flags.Count = 16,
    batches: flags.Count = 8,
    logit_scale: flags.LogitScale = None,
    max_length: flags.MaxLength = None,
) -> None:
    """Show norms and spectra, and what several adapters have in common.

    With --base and --data also how the losses react to every direction of the adapters,
    on the batches with which `jaxmerge learn --pipeline tara_a` begins.

    Args:
      paths: PEFT folders, or one orbax checkpoint of jaxmerge.
      modules: Print one line for each module.
      plots: Folder for plots, as PNG.
      html: One page with tables and plots.
      force: Replace the page and the plots.
      base: Hugging Face folder of the base model. With --data, derivatives through it
        are shown too.
      batch: With --base: inputs of each task at a time.
      batches: With --base: how many batches are taken.
    """
    from jaxmerge.jobs import inspecting

    found = inspecting.inspect(**options, progress=console.progress)
    console.show(found, partial(_lines, each=modules))


def _lines(found: "Inspected", *, each: bool) -> Iterator[Any]:
    yield from reports.inspection(found.inspection, each=each)
    yield from (f"wrote {path}" for path in found.plots)
    yield from (f"wrote {path}" for path in [found.html] if path)
