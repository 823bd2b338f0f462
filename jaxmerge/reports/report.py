"""Files of ``jaxmerge inspect``: plots, and one page with everything."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmerge.refusals import Refusal

if TYPE_CHECKING:
    from jaxmerge.diagnostics.findings import Findings
    from jaxmerge.diagnostics.reactions import Reactions
    from jaxmerge.diagnostics.spectra import TaskSummary
    from jaxmerge.reports.plots import Plot


def check_outputs(
    plots: Path | None, html: Path | None, *, force: bool, inputs: Sequence[Path]
) -> None:
    """Refuses, before any work, what could not be written in the end.

    Nothing is written into an input, whatever is to be replaced.
    """
    if plots is None and html is None:
        return
    from jaxmerge.reports.drawing import require_matplotlib

    require_matplotlib()
    for flag, path in {"--plots": plots, "--html": html}.items():
        for kept in inputs if path is not None else ():
            if path.resolve().is_relative_to(kept.resolve()):
                raise Refusal(f"{flag} {path} is or lies in the input {kept}")
    if plots is not None and plots.exists():
        if not plots.is_dir():
            raise Refusal(f"{plots} is a file; --plots takes a folder")
        if not force and any(plots.glob("*.png")):
            raise Refusal(f"{plots} holds plots already; pass --force or another")
    if html is not None:
        if html.is_dir():
            raise Refusal(f"{html} is a folder; --html takes a file")
        if html.exists() and not force:
            raise Refusal(f"{html} exists already; pass --force or another name")


def write_plots(
    found: "Findings", folder: Path, reactions: "Reactions | None" = None
) -> list[Path]:
    """Writes every plot as PNG; gives their paths."""
    from jaxmerge.reports.drawing import render

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in _plots(found, reactions):
        path = folder / f"{plot.name}.png"
        path.write_bytes(render(plot.draw))
        written.append(path)
    return written


def write_page(
    found: "Findings",
    tasks: Sequence["TaskSummary"],
    verdicts: Sequence[str],
    path: Path,
    reactions: "Reactions | None" = None,
) -> Path:
    """Writes the page; gives its path."""
    from jaxmerge.reports.page import page

    path.parent.mkdir(parents=True, exist_ok=True)
    plots = _plots(found, reactions)
    text = page(found, tasks, verdicts, plots, reactions)
    path.write_text(text, encoding="utf-8")
    return path


def _plots(found: "Findings", reactions: "Reactions | None") -> list["Plot"]:
    from jaxmerge.reports.plots import plots_of
    from jaxmerge.reports.reaction_plots import reaction_plots

    return [*plots_of(found), *([] if reactions is None else reaction_plots(reactions))]
