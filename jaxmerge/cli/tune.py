"""``jaxmerge tune``: searches scales and other numbers of a merge."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import Interrupted
from jaxmerge.cli.read_flags import Reading
from jaxmerge.cli.search_lines import repetition, search_lines

Score = Literal[
    "distillation", "features", "entropy", "information", "null-space", "accuracy"
]


@command(reads=Reading(heads="keep"))
def tune(
    console: Console,
    options: Options,
    *,
    folders: flags.Folders,
    pipeline: Annotated[list[str], typer.Option("--pipeline", "-p")],
    base: Path | None = None,
    data: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel="Score",
            help="Folder with inputs of each task, for accuracy labeled: "
            + flags.DATA_FILES,
        ),
    ] = None,
    score: Score = "distillation",
    command: str | None = None,
    maximise: Annotated[bool | None, typer.Option("--maximise/--minimise")] = None,
    weights: Annotated[str | None, typer.Option(metavar="W,W,...")] = None,
    masks: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    search: Literal["line", "grid", "cma"] = "line",
    points: int = 9,
    refinements: int = 5,
    population: int | None = None,
    evaluations: int | None = None,
    minutes: float | None = None,
    seed: flags.Seed = 0,
    seeds: int = 3,
    preference: flags.Preference = None,
    temperature: flags.Temperature = 1.0,
    logit_scale: flags.LogitScale = None,
    stats: flags.Stats = None,
    names: flags.Names = None,
    text_heads: flags.TextHeads = None,
    task_type: flags.ModelType = None,
    limit: flags.Limit = None,
    batch: flags.BatchSize = 64,
    max_length: flags.MaxLength = None,
    out: flags.OutOrNone = None,
    work: Path | None = None,
    dense: Literal["error", "full"] = "error",
    dtype: flags.Dtype = None,
    plot: Path | None = None,
    force: flags.Force = False,
) -> None:
    """Search the scale of a merge, its densities, weights and masks.

    Without labels, merges are scored by how far their predictions are from those of
    the own adapters; --score and --command choose another guide. The result is a
    pipeline that merge repeats exactly. If the command is stopped, the same command
    goes on with what was tried.

    Args:
      pipeline: As for merge; what is searched stands in braces, a range as in
        'tsv_m|scale({0.1:2})' or choices as in 'trim(density={0.1, 0.3})'. Without any
        the last scale is searched, from 0.05 to 5. Repeatable.
      weights: A number or a range {0.5:2} for each adapter, or one range for all.
      masks: Search which tasks are left out of which blocks of the model, at most this
        share of all pairs (ENMP: 0.2). Needs --search cma.
      out: Folder for the best merge; none unless given.
      work: Folder of what was tried, from which the same command goes on; beside --out
        unless given, none without both.
      dense: Refuse dense results, or write weight deltas.
      plot: File for a plot of what was tried, as PNG.

    Score:
      base: Hugging Face folder of the base model.
      score: A loss of learn, without labels, or accuracy as a share of the own
        adapter's.
      command: In their place: a shell command that prints a number in its last line;
        {merged} in it stands for the merged folder.
      maximise: Whether the number of the command is to be large.
      preference: Weight of each task in the score; equal ones unless given.
      temperature: Temperature of the predictions that are compared.

    Search:
      search: A few numbers of each range and then golden section, all on a grid, or
        CMA-ES.
      points: Numbers of each range, for grid and where line begins.
      refinements: Steps of golden section.
      population: Merges of a generation of CMA-ES.
      evaluations: Largest number of merges.
      minutes: For merges and scores, at most.
      seed: Seed of steps that draw at random, and of CMA-ES.
      seeds: Seeds with which a merge that draws at random is scored.
    """
    from jaxmerge.jobs import tuned, tuning

    try:
        found = tuning.tune(**options, progress=console.progress)
    except tuned.SearchStopped as stopped:
        if console.as_json:
            console.result(stopped.tried.to_json(), list)
        kept = "; the same command goes on from here" if stopped.tried.trace else ""
        raise Interrupted(f"{stopped}{kept}") from stopped
    console.show(found, partial(search_lines, again=repetition(found, options)))
