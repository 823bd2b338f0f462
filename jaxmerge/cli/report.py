"""Files of ``jaxmerge inspect``: plots, and one page with everything."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmerge.cli.errors import CommandError

if TYPE_CHECKING:
    from jaxmerge.cli.findings import Findings
    from jaxmerge.cli.spectra import TaskSummary


def check_outputs(plots: Path | None, html: Path | None, *, force: bool) -> None:
    """Refuses, before any work, what could not be written in the end."""
    if plots is None and html is None:
        return
    from jaxmerge.cli.drawing import require_matplotlib

    require_matplotlib()
    if plots is not None and plots.exists():
        if not plots.is_dir():
            raise CommandError(f"{plots} is a file; --plots takes a folder")
        if not force and any(plots.glob("*.png")):
            raise CommandError(f"{plots} holds plots already; pass --force or another")
    if html is not None:
        if html.is_dir():
            raise CommandError(f"{html} is a folder; --html takes a file")
        if html.exists() and not force:
            raise CommandError(f"{html} exists already; pass --force or another name")


def write_plots(found: "Findings", folder: Path) -> list[Path]:
    """Writes every plot as PNG; gives their paths."""
    from jaxmerge.cli.drawing import render
    from jaxmerge.cli.plots import plots_of

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots_of(found):
        path = folder / f"{plot.name}.png"
        path.write_bytes(render(plot.draw))
        written.append(path)
    return written


def write_page(
    found: "Findings", tasks: Sequence["TaskSummary"], verdict: str, path: Path
) -> Path:
    """Writes the page; gives its path."""
    from jaxmerge.cli.page import page

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(found, tasks, verdict), encoding="utf-8")
    return path
