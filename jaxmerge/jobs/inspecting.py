"""What adapters are and have in common, before any merge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from jaxmerge import reports
from jaxmerge.io.options import TaskType
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import (
    Folder,
    ModelInputs,
    ReadOptions,
    paths_of,
    read_model_inputs,
    refusing_bad_input,
)
from jaxmerge.refusals import Option, Refusal
from jaxmerge.reports.overview import check_outputs

if TYPE_CHECKING:
    from jaxmerge.diagnostics.inspection import Inspection
    from jaxmerge.diagnostics.reactions import Reactions


@dataclass(frozen=True)
class Inspected:
    """What was found, and what was written.

    Attributes:
      paths: what was inspected.
      inspection: everything that was found; `jaxmerge.reports.inspection` shows it.
      plots: files that were written.
      html: page that was written.
    """

    paths: tuple[str, ...]
    inspection: "Inspection"
    plots: tuple[Path, ...] = ()
    html: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        document = {"paths": list(self.paths), **self.inspection.to_json()}
        if self.plots:
            document["plots"] = [str(path) for path in self.plots]
        if self.html is not None:
            document["html"] = str(self.html)
        return document


def inspect(
    paths: Sequence[Folder],
    *,
    plots: Folder | None = None,
    html: Folder | None = None,
    base: Folder | None = None,
    data: Folder | None = None,
    names: Sequence[str] | None = None,
    text_heads: Folder | None = None,
    task_type: TaskType | None = None,
    batch: int = 16,
    batches: int = 8,
    logit_scale: float | None = None,
    max_length: int | None = None,
    force: bool = False,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Inspected:
    """Norms and spectra of adapters, and what several of them have in common.

    With ``base`` and ``data`` also how the losses react to every direction of the
    adapters, on the batches with which a fit of TARA-A begins.

    Args:
      paths: PEFT folders, or one orbax checkpoint of jaxmerge.
      plots: folder for plots, as PNG.
      html: one page with tables and plots.
      base: Hugging Face folder of the base model.
      data: folder with the inputs of each adapter.
      names: names of the tasks; by default those of the folders.
      text_heads: for CLIP: file with text vectors, see `jaxmerge.learn`.
      task_type: what the adapters are of, see `jaxmerge.learn`.
      batch: with ``base``: number of inputs of each task in the model at a time.
      batches: with ``base``: number of batches of each task.
      logit_scale: multiplies the logits; what the base stores unless given.
      max_length: number of tokens to which texts are truncated.
      force: replace the page and the plots.
      progress: shows how far the job is.
      **read: see `jaxmerge.io.load_peft`.

    Returns:
      `Inspected`.

    Raises:
      Refusal: files that do not belong together, or options that need others.
    """
    from jaxmerge.diagnostics.inspection import count_modules, inspect_adapters

    if (base is None) != (data is None):
        raise Refusal(Option("base"), " and ", Option("data"), " go together")
    if base is None:
        _refuse_given(
            names=names,
            text_heads=text_heads,
            task_type=task_type,
            logit_scale=logit_scale,
            max_length=max_length,
        )
    drawn, page = (None if path is None else Path(path) for path in (plots, html))
    inputs = paths_of(*paths, base, data, text_heads)
    check_outputs(drawn, page, force=force, inputs=inputs)
    if read.get("heads", "error") == "error":  # nothing is merged: no policy is needed
        read["heads"] = "keep"
    model = None
    if base is not None and data is not None:
        needs = (Option("base"), " and ", Option("data"), " need PEFT folders")
        _refuse_checkpoints(paths, *needs)
        model = read_model_inputs(
            paths,
            base=base,
            data=data,
            names=names,
            text_heads=text_heads,
            task_type=task_type,
            max_length=max_length,
            progress=progress,
            read=read,
        )
    if model is None:
        with progress("reading", 1) as advance:
            stored = _load(paths, read)
            advance(1)
    else:
        stored = model.adapters
    with progress("comparing modules", count_modules(stored)) as advance:
        found = inspect_adapters(stored, report=advance)
    if found.findings is None and (plots or html or model):
        raise Refusal(
            *("plots, pages and ", Option("base")),
            " need at least two adapters to compare",
        )
    if model is not None:
        reacted = _reactions(model, logit_scale, batch, batches, progress)
        found = replace(found, reactions=reacted)
    return Inspected(
        paths=tuple(map(str, paths)),
        inspection=found,
        plots=() if drawn is None else tuple(reports.write_plots(found, drawn)),
        html=None if page is None else reports.write_page(found, page),
    )


def _refuse_given(**options: Any) -> None:
    """Refuses options that would do nothing without a model."""
    for name, value in options.items():
        if value is not None:
            raise Refusal(
                *(Option(name), " needs ", Option("base"), " and ", Option("data"))
            )


def _load(paths: Sequence[Folder], read: ReadOptions) -> Any:
    from jaxmerge import io
    from jaxmerge.io.stored import load_stored
    from jaxmerge.types import RoutedCores

    if len(paths) == 1:
        found = load_stored(paths[0], **read)
        routed = isinstance(found, dict) and any(
            isinstance(value, RoutedCores) for value in found.values()
        )
        if routed:
            raise Refusal(
                f"{paths[0]}: holds routed cores, which are no single update; fix the "
                "gates by jaxmerge.fixed_update and save what that gives"
            )
        return found
    _refuse_checkpoints(paths, "look at one at a time")
    return io.load_peft(paths, **read)


def _refuse_checkpoints(paths: Sequence[Folder], *why: str | Option) -> None:
    from jaxmerge.io.formats import format_of

    for path in paths:
        found = format_of(path)
        if found is not None:
            raise Refusal(
                *(f"{path} is {found.says}; ", *why),
                ", or convert its adapters to PEFT folders",
            )


def _reactions(
    model: ModelInputs,
    logit_scale: float | None,
    batch: int,
    batches: int,
    progress: Progress,
) -> "Reactions":
    from jaxmerge.diagnostics.reactions import reactions

    adapters, base, heads, unlabeled, _ = model
    with progress("differentiating", 1) as advance, refusing_bad_input():
        found = reactions(
            *(base, adapters, heads, unlabeled),
            batch=batch,
            batches=batches,
            logit_scale=base.scale(logit_scale),
        )
        advance(1)
    return found
