"""An inspection as people look at it: lines and tables, plots, one page."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmerge.refusals import Option, Refusal

if TYPE_CHECKING:
    from jaxmerge.diagnostics.findings import Findings
    from jaxmerge.diagnostics.inspection import Inspection
    from jaxmerge.diagnostics.reactions import Reactions
    from jaxmerge.reports.plots import Plot


def inspection(found: "Inspection", *, each: bool = False) -> Iterator[Any]:
    """Lines and rich tables for a terminal.

    Args:
      found: what `jaxmerge.inspect` gives as ``inspection``.
      each: one line for each module instead of one for those of a kind and shape.
    """
    from jaxmerge.reports.comparison import task_table
    from jaxmerge.reports.tables import coloured

    for task in found.tasks:
        yield f"{task.name}: {len(task.modules)} modules, norm {task.norm:.4g}"
        if task.base_model or task.dtype:
            yield f"  of {task.base_model or 'an unnamed base'}, {task.dtype}"
        yield task_table(task, each=each)
    if found.findings is not None:
        yield from _together(found.findings, each=each)
    if found.reactions is not None:
        yield from _through_model(found.reactions)
    yield from (f"note: {note}" for note in found.notes)
    for said in (*found.verdict, *found.verdict_on_reactions):
        yield coloured(f"verdict: {said.text}", said.harm)


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
    for name, path in {"plots": plots, "html": html}.items():
        for kept in inputs if path is not None else ():
            if path is not None and path.resolve().is_relative_to(kept.resolve()):
                given = Option(name, str(path))
                raise Refusal(given, f" is or lies in the input {kept}")
    force_or = ("; pass ", Option("force"), " or another name")
    if plots is not None and plots.exists():
        if not plots.is_dir():
            raise Refusal(f"{plots} is a file; ", Option("plots"), " takes a folder")
        if not force and any(plots.glob("*.png")):
            raise Refusal(f"{plots} holds plots already", *force_or)
    if html is not None:
        if html.is_dir():
            raise Refusal(f"{html} is a folder; ", Option("html"), " takes a file")
        if html.exists() and not force:
            raise Refusal(f"{html} exists already", *force_or)


def write_plots(found: "Inspection", folder: Path) -> list[Path]:
    """Writes every plot as PNG; gives their paths."""
    from jaxmerge.io.staging import staged_file
    from jaxmerge.reports.drawing import render

    written = []
    for plot in _plots(found):
        path = folder / f"{plot.name}.png"
        with staged_file(path) as staged:
            staged.write_bytes(render(plot.draw))
        written.append(path)
    return written


def write_page(found: "Inspection", path: Path) -> Path:
    """Writes the page; gives its path."""
    from jaxmerge.io.staging import staged_file
    from jaxmerge.reports.page import page

    with staged_file(path) as staged:
        staged.write_text(page(found, _plots(found)), encoding="utf-8")
    return path


def _plots(found: "Inspection") -> list["Plot"]:
    from jaxmerge.reports.plots import plots_of
    from jaxmerge.reports.reaction_plots import reaction_plots

    plots = [] if found.findings is None else plots_of(found.findings)
    if found.reactions is not None:
        plots += reaction_plots(found.reactions)
    return plots


def _together(found: "Findings", *, each: bool) -> Iterator[Any]:
    from jaxmerge.reports.comparison import module_table, pair_table

    yield ""
    yield f"{len(found.tasks)} adapters together"
    yield module_table(found, each=each)
    yield ""
    yield pair_table(found)
    yield ""


def _through_model(found: "Reactions") -> Iterator[Any]:
    from jaxmerge.reports.reaction_tables import (
        heading,
        misalignment_table,
        preference_table,
    )

    yield heading(found)
    yield preference_table(found)
    yield from (f"note: {note}" for note in found.notes)
    yield ""
    yield "misalignment of preferences"
    yield misalignment_table(found)
    yield ""
