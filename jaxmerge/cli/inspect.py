"""``jaxmerge inspect``: what adapters are and have in common, before any merge."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import CommandError, refusing_bad_input
from jaxmerge.cli.options import (
    DATA_FILES,
    Json,
    LogitScale,
    MaxLength,
    Names,
    Quiet,
    TextHeads,
    with_read_options,
)
from jaxmerge.cli.runtime import start_jax
from jaxmerge.jobs.model_inputs import ModelInputs, read_model_inputs

if TYPE_CHECKING:
    from jaxmerge.diagnostics.findings import Findings
    from jaxmerge.diagnostics.reactions import Reactions


@with_read_options
def inspect(
    *,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER...",
            help="PEFT folders, or one orbax checkpoint of jaxmerge.",
        ),
    ],
    read: dict[str, Any],
    modules: Annotated[
        bool, typer.Option("--modules", help="One line for each module.")
    ] = False,
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Folder for plots, as PNG.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="One page with tables and plots.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the page and the plots.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Hugging Face folder of the base: BERT, Llama or CLIP. With --data, "
            "derivatives through it are shown too."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --base: folder with the inputs of each adapter, labels ignored: "
            + DATA_FILES
        ),
    ] = None,
    names: Names = None,
    text_heads: TextHeads = None,
    batch: Annotated[
        int, typer.Option(min=1, help="With --base: inputs of each task at a time.")
    ] = 16,
    batches: Annotated[
        int, typer.Option(min=1, help="With --base: how many batches.")
    ] = 8,
    logit_scale: LogitScale = None,
    max_length: MaxLength = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show norms and spectra, and what several adapters have in common.

    With --base and --data also how the losses react to every direction of the adapters,
    on the batches with which jaxmerge learn --method tara-a begins.
    """
    from jaxmerge.reports.report import check_outputs, write_page, write_plots

    if (base is None) != (data is None):
        raise CommandError("--base and --data go together")
    if base is None:
        _refuse_given(
            {
                "--names": names,
                "--text-heads": text_heads,
                "--logit-scale": logit_scale,
                "--max-length": max_length,
            }
        )
    given = [path for path in (base, data, text_heads) if path is not None]
    check_outputs(plots, html, force=force, inputs=[*paths, *given])
    start_jax()
    from jaxmerge.diagnostics.spectra import summarize

    console = Console(as_json=as_json, quiet=quiet)
    if read["heads"] == "error":  # nothing is merged, so no policy is needed
        read = {**read, "heads": "keep"}
    model = None
    if base is not None and data is not None:
        _refuse_checkpoints(paths, "--base and --data need PEFT folders")
        model = read_model_inputs(
            *(console, paths, read),
            base=base,
            data=data,
            names=names,
            text_heads=text_heads,
            max_length=max_length,
        )
    stored = _load(paths, read) if model is None else model.adapters
    tasks = summarize(stored)
    found = _findings(stored)
    if found is None and (plots or html or model):
        raise CommandError(
            "plots, pages and --base need at least two adapters to compare"
        )
    reactions = None
    if model is not None:
        reactions = _reactions(console, model, logit_scale, batch, batches)
    document: dict[str, Any] = {
        "paths": [str(path) for path in paths],
        "tasks": [task.to_json() for task in tasks],
        "diagnostics": None,
    }
    said = []
    if found is not None:
        from jaxmerge.diagnostics import verdict

        said.append(verdict.of_all(found.pairs))
        document["diagnostics"] = {"verdict": said[0], **found.to_json()}
        if reactions is not None:
            from jaxmerge.reports.reactions import to_json

            said.append(verdict.of_reactions(reactions))
            document["reactions"] = {"verdict": said[1], **to_json(reactions)}
        if plots is not None:
            written = write_plots(found, plots, reactions)
            document["plots"] = [str(path) for path in written]
        if html is not None:
            document["html"] = str(write_page(found, tasks, said, html, reactions))

    def lines() -> Iterator[Any]:
        for task in tasks:
            yield f"{task.name}: {len(task.modules)} modules, norm {task.norm:.4g}"
            if task.base_model or task.dtype:
                yield f"  of {task.base_model or 'an unnamed base'}, {task.dtype}"
            yield task.table(each=modules)
        if found is not None:
            yield from _together(found, each=modules)
        if reactions is not None:
            yield from _through_model(reactions)
        yield from (f"verdict: {line}" for line in said)
        yield from (f"wrote {path}" for path in document.get("plots", ()))
        yield from (f"wrote {path}" for path in [document.get("html")] if path)

    console.result(document, lines)


def _together(found: "Findings", *, each: bool) -> Iterator[Any]:
    from jaxmerge.reports.comparison import module_table, pair_table

    yield ""
    yield f"{len(found.tasks)} adapters together"
    yield module_table(found, each=each)
    yield ""
    yield pair_table(found)
    yield ""


def _through_model(found: "Reactions") -> Iterator[Any]:
    from jaxmerge.reports.reactions import heading, misalignment_table, preference_table

    yield heading(found)
    yield preference_table(found)
    yield from (f"note: {note}" for note in found.notes)
    yield ""
    yield "misalignment of preferences"
    yield misalignment_table(found)
    yield ""


def _refuse_given(options: dict[str, Any]) -> None:
    """Options that would do nothing without a model."""
    for flag, value in options.items():
        if value is not None:
            raise CommandError(f"{flag} needs --base and --data")


def _load(paths: list[Path], read: dict[str, Any]) -> Any:
    from jaxmerge import io
    from jaxmerge.io.stored import load_stored

    if len(paths) == 1:
        return load_stored(paths[0], read)
    _refuse_checkpoints(paths, "look at one at a time")
    return io.load_peft(paths, **read)


def _refuse_checkpoints(paths: list[Path], why: str) -> None:
    from jaxmerge.io.stored import is_orbax

    for path in paths:
        if is_orbax(path):
            raise CommandError(
                f"{path} is an orbax checkpoint; {why}, "
                "or convert its adapters to PEFT folders"
            )


def _findings(stored: Any) -> "Findings | None":
    """Diagnostics of adapters that can be compared; None for one, or for merges."""
    from jaxmerge.diagnostics.findings import find
    from jaxmerge.io import Adapters
    from jaxmerge.types import AdapterStack

    if isinstance(stored, Adapters):
        names, stacks = stored.names, stored.stacks
    else:
        stacks = {m: v for m, v in stored.items() if isinstance(v, AdapterStack)}
        count = max((len(stack.ranks) for stack in stacks.values()), default=0)
        names = tuple(f"task {task}" for task in range(count))
    return find(names, stacks) if len(names) > 1 else None


def _reactions(
    console: Console,
    model: ModelInputs,
    logit_scale: float | None,
    batch: int,
    batches: int,
) -> "Reactions":
    from jaxmerge.diagnostics.reactions import reactions

    adapters, base, heads, unlabeled, _ = model
    with console.progress("differentiating", 1) as advance, refusing_bad_input():
        found = reactions(
            *(base, adapters, heads, unlabeled),
            batch=batch,
            batches=batches,
            logit_scale=base.scale(logit_scale),
        )
        advance(1)
    return found
