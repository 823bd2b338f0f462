"""``jaxmerge compress`` and ``restore``: adapters in terms of what they share."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.read_flags import Reading
from jaxmerge.reports.tables import table

if TYPE_CHECKING:
    from jaxmerge.jobs.compressing import Compressed, Restored


@command(reads=Reading())
def compress(
    console: Console,
    options: Options,
    *,
    folders: flags.Folders,
    out: flags.Out,
    components: Annotated[int | None, typer.Option("--components", "-p", min=1)] = None,
    rank: flags.CountOrNone = None,
    names: flags.Names = None,
    plot: Path | None = None,
    force: flags.Force = False,
) -> None:
    """Compress adapters into one folder, from which each can be restored.

    Prints what every number of components stores and loses. To save much, lower --rank
    before --components: what `jaxmerge restore` gives is then nearly the same.

    Args:
      components: Number of components that are kept; one for each adapter, which loses
        nothing, unless given.
      rank: Width of the bases that the adapters share; all directions, which loses
        nothing, unless given.
      plot: PNG file for the errors against what is stored.
    """
    from jaxmerge.jobs import compressing

    found = compressing.compress(**options, progress=console.progress)
    console.show(found, _compressed_lines)


def _compressed_lines(found: "Compressed") -> Iterator[Any]:
    lost = "nothing is lost" if found.exact else f"error {found.chosen.error:.3f}"
    yield (
        f"{found.path}: {len(found.adapters)} adapters, {found.modules} modules, "
        f"{found.chosen.components} components; {lost}"
    )
    yield ""
    yield table(
        ("components>", "numbers>", "of adapters>", "error>", "worst>"),
        [
            (
                *(row.components, f"{row.numbers:,}", f"{row.share:.2f}"),
                *(f"{row.error:.3f}", f"{row.worst:.3f}"),
            )
            for row in found.curve
        ],
    )
    yield (
        f"a core for each adapter in the same bases: {found.core_numbers:,}; the "
        f"adapters as they are: {found.adapter_numbers:,}"
    )
    yield from (f"note: {note}" for note in found.notes)
    yield from (f"wrote {path}" for path in [found.plot] if path)


@command()
def restore(
    console: Console,
    options: Options,
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    adapter: str,
    out: flags.Out,
    rank: flags.CountOrNone = None,
    ragged: flags.Ragged = False,
    force: flags.Force = False,
) -> None:
    """Restore one of the adapters that were compressed, as a PEFT folder.

    Args:
      folder: Folder of `jaxmerge compress`.
      adapter: Name of the adapter.
      rank: Rank to truncate to; unless given that which the adapter had, or all
        directions where something was lost.
      ragged: Give each module its own rank.
    """
    from jaxmerge.jobs import compressing

    console.show(compressing.restore(**options), _restored_lines)


def _restored_lines(found: "Restored") -> Iterator[str]:
    kept = "as it was" if found.exact else "nearly as it was"
    yield f"{found.path}: {found.adapter}, {kept}, rank {found.rank} ({found.dtype})"
    if found.energy < 1:
        yield f"  the rank leaves {found.energy:.4f} of a squared norm or more"
