"""``jaxmerge tune``: searches scales and other numbers of a merge."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import Interrupted
from jaxmerge.cli.flags import (
    DATA_FILES,
    BatchSize,
    Folders,
    Force,
    Json,
    Limit,
    LogitScale,
    MaxLength,
    ModelType,
    Names,
    Quiet,
    Stats,
    TextHeads,
    numbers,
    split,
)
from jaxmerge.cli.merge import Dtype
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.cli.search_lines import repetition, search_lines
from jaxmerge.runtime import start_jax

Score = Literal[
    "distillation", "features", "entropy", "information", "null-space", "accuracy"
]
Search = Literal["line", "grid", "cma"]
_SCORING, _SEARCHING = "Score", "Search"


@partial(with_read_options, heads="keep")
def tune(
    *,
    folders: Folders,
    pipeline: Annotated[
        list[str],
        typer.Option(
            "--pipeline",
            "-p",
            help="As for merge; what is searched stands in braces, a range as in "
            "'tsv_m|scale({0.1:2})' or choices as in 'trim(density={0.1, 0.3})'. "
            "Without any the last scale is searched, from 0.05 to 5. Repeatable.",
        ),
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_SCORING, help="Hugging Face folder of the base model."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_SCORING,
            help=f"Folder with inputs of each task, for accuracy labeled: {DATA_FILES}",
        ),
    ] = None,
    score: Annotated[
        Score,
        typer.Option(
            rich_help_panel=_SCORING,
            help="A loss of learn, without labels, or accuracy as a share of the own "
            "adapter's.",
        ),
    ] = "distillation",
    command: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_SCORING,
            help="In their place: a shell command that prints a number in its last "
            "line; {merged} in it stands for the merged folder.",
        ),
    ] = None,
    maximise: Annotated[
        bool | None,
        typer.Option(
            "--maximise/--minimise",
            rich_help_panel=_SCORING,
            help="Whether the number of the command is to be large.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            help="A number or a range {0.5:2} for each adapter, or one range for all.",
        ),
    ] = None,
    masks: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Search which tasks are left out of which blocks of the model, at "
            "most this share of all pairs (ENMP: 0.2). Needs --search cma.",
        ),
    ] = 0.0,
    search: Annotated[
        Search,
        typer.Option(
            rich_help_panel=_SEARCHING,
            help="A few numbers of each range and then golden section, all on a grid, "
            "or CMA-ES.",
        ),
    ] = "line",
    points: Annotated[
        int,
        typer.Option(
            rich_help_panel=_SEARCHING,
            help="Numbers of each range, for grid and where line begins.",
        ),
    ] = 9,
    refinements: Annotated[
        int,
        typer.Option(rich_help_panel=_SEARCHING, help="Steps of golden section."),
    ] = 5,
    population: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_SEARCHING, help="Merges of a generation of CMA-ES."
        ),
    ] = None,
    evaluations: Annotated[
        int | None,
        typer.Option(rich_help_panel=_SEARCHING, help="Largest number of merges."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_SEARCHING, help="For merges and scores, at most."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            rich_help_panel=_SEARCHING,
            help="Seed of steps that draw at random, and of CMA-ES.",
        ),
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            rich_help_panel=_SEARCHING,
            help="Seeds with which a merge that draws at random is scored.",
        ),
    ] = 3,
    preference: Annotated[
        str | None,
        typer.Option(
            metavar="P,P,...",
            rich_help_panel=_SCORING,
            help="Weight of each task in the score; equal ones unless given.",
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            rich_help_panel=_SCORING,
            help="Temperature of the predictions that are compared.",
        ),
    ] = 1.0,
    logit_scale: LogitScale = None,
    stats: Stats = None,
    names: Names = None,
    text_heads: TextHeads = None,
    task_type: ModelType = None,
    limit: Limit = None,
    batch: BatchSize = 64,
    max_length: MaxLength = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the best merge; none unless given."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of what was tried, from which the same command goes on; "
            "beside --out unless given, none without both."
        ),
    ] = None,
    dense: Annotated[
        Literal["error", "full"],
        typer.Option(help="Refuse dense results, or write weight deltas."),
    ] = "error",
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Dtype of the output; that of the inputs unless given."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="File for a plot of what was tried, as PNG."),
    ] = None,
    read: dict[str, Any],
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search the scale of a merge, its densities, weights and masks.

    Without labels, merges are scored by how far their predictions are from those of
    the own adapters; --score and --command choose another guide. The result is a
    pipeline that merge repeats exactly. If the command is stopped, the same command
    goes on with what was tried.
    """
    start_jax()
    from jaxmerge.jobs import tuned, tuning

    console = Console(as_json=as_json, quiet=quiet)
    try:
        found = tuning.tune(
            folders,
            pipeline,
            base=base,
            data=data,
            score=score,
            command=command,
            maximise=maximise,
            weights=weights,
            masks=masks,
            search=search,
            points=points,
            refinements=refinements,
            population=population,
            evaluations=evaluations,
            minutes=minutes,
            seed=seed,
            seeds=seeds,
            preference=numbers(preference, "--preference"),
            temperature=temperature,
            logit_scale=logit_scale,
            stats=stats,
            names=split(names),
            text_heads=text_heads,
            task_type=task_type,
            limit=limit,
            batch=batch,
            max_length=max_length,
            out=out,
            work=work,
            dense=dense,
            dtype=dtype,
            plot=plot,
            force=force,
            progress=console.progress,
            **read,
        )
    except tuned.SearchStopped as stopped:
        if as_json:
            console.result(stopped.tried.to_json(), list)
        kept = "; the same command goes on from here" if stopped.tried.trace else ""
        raise Interrupted(f"{stopped}{kept}") from stopped
    others = {"stats": stats, "names": names, "dtype": dtype, "dense": dense}
    again = repetition(found, folders, {**others, **read})
    console.result(found.to_json(), lambda: search_lines(found, again))
