"""``jaxmerge learn``: adapters, their base and unlabeled data in, one adapter out."""

import logging
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import FitDiverged
from jaxmerge.cli.flags import (
    BaseFolder,
    DataFolder,
    Distributed,
    Dtype,
    Folders,
    Force,
    Json,
    Limit,
    LogitScale,
    MaxLength,
    ModelType,
    Names,
    Out,
    Quiet,
    Stats,
    TextHeads,
    numbers,
    split,
)
from jaxmerge.cli.merge import written_lines
from jaxmerge.cli.read_flags import with_read_options
from jaxmerge.runtime import start_jax

if TYPE_CHECKING:
    from jaxmerge.jobs.learnt import Learnt


Loss = Literal["distillation", "features", "entropy", "information", "null-space"]
Unit = Literal["model", "block", "layer"]
Start = Literal["auto", "method"]
Schedule = Literal["constant", "cosine"]
Objective = Literal["tchebycheff", "tchebycheff-absolute", "linear"]


@partial(with_read_options, heads="keep")
def learn(
    *,
    folders: Folders,
    base: BaseFolder,
    data: DataFolder,
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            "-p",
            help="A learned merger with what surrounds it, such as 'tara_b', "
            "'tara_a|calibrate' or 'adamerging|svc'.",
        ),
    ],
    out: Out,
    stats: Stats = None,
    names: Names = None,
    text_heads: TextHeads = None,
    task_type: ModelType = None,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared",
            help="Learn one coefficient of each task for all modules (AdaMerging).",
        ),
    ] = False,
    unit: Annotated[
        Unit,
        typer.Option(
            help="What is learned at a time: all coefficients through the whole model, "
            "those of a block from its own outputs, or those of a linear layer in "
            "closed form. The latter two need the memory of one block."
        ),
    ] = "model",
    loss: Annotated[
        Loss | None,
        typer.Option(
            help="Loss of each task: divergence from the predictions of its own "
            "adapter, distance from the features of its own adapter, entropy of the "
            "predictions (as in the papers), the same less the entropy of their mean, "
            "or the share of the inputs that its adapter no longer sees (NSC). The "
            "first unless given; of blocks and layers features."
        ),
    ] = None,
    start: Annotated[
        Start,
        typer.Option(
            help="Begin at the scale that serves the objective best, or with the "
            "number that the pipeline gives as initial."
        ),
    ] = "auto",
    temperature: Annotated[
        float, typer.Option(help="Temperature of the predictions that are compared.")
    ] = 1.0,
    teacher_top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Of causal language models: keep the K likeliest tokens of what each "
            "adapter says, and the probability of the rest; its hidden states, or 256 "
            "where adapters change lm_head, unless given.",
        ),
    ] = None,
    objective: Annotated[
        Objective | None,
        typer.Option(
            help="Objective of all tasks together; that of the method's paper unless "
            "given: tchebycheff, for AdaMerging linear."
        ),
    ] = None,
    preference: Annotated[
        str | None,
        typer.Option(
            metavar="P,P,...",
            help="A number for each adapter, scaled to sum 1; equal ones unless given.",
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(
            help="Smoothing of the objective: a small number cares for the worst task "
            "only."
        ),
    ] = 1.0,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate; 0.02 for losses with a teacher, otherwise 0.001, "
            "unless given."
        ),
    ] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            help="Keep the rate, or let it fall to 0 at the last step; the latter for "
            "losses with a teacher unless given."
        ),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(min=1, help="Number of steps of the optimiser, in each unit."),
    ] = 500,
    batch: Annotated[
        int, typer.Option(min=1, help="Number of inputs of each task in a step.")
    ] = 16,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the batches.")
    ] = 0,
    logit_scale: LogitScale = None,
    max_length: MaxLength = None,
    limit: Limit = None,
    accumulate: Annotated[
        bool,
        typer.Option(
            "--accumulate",
            help="Go through the tasks one after the other, which needs less memory.",
        ),
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the checkpoints, for one fit at a time and apart from "
            "--out; it is kept. By default beside --out, and removed at the end."
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Dtype of the output; that of the inputs unless given."),
    ] = None,
    read: dict[str, Any],
    force: Force = False,
    distributed: Distributed = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Learn how to merge adapters, from inputs without labels.

    Coefficients are fitted through the base model so that the merged model says of the
    inputs of every task what the task's own adapter says of them; --loss chooses
    another guide. If the command is stopped, the same command goes on from the last
    checkpoint. Exit code 1 if the fit diverges.
    """
    start_jax(distributed=distributed)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every old step
    from jaxmerge.jobs import fitting

    console = Console(as_json=as_json, quiet=quiet)
    folder = fitting.work_folder(work, out)
    try:
        found = fitting.learn(
            folders,
            pipeline,
            base=base,
            data=data,
            out=out,
            stats=stats,
            names=split(names),
            text_heads=text_heads,
            task_type=task_type,
            shared=shared,
            unit=unit,
            loss=loss or "",
            start=start,
            temperature=temperature,
            teacher_top=teacher_top,
            objective=objective or "",
            preference=numbers(preference, "--preference"),
            alpha=alpha,
            rate=rate,
            schedule=schedule or "",
            steps=steps,
            batch=batch,
            seed=seed,
            logit_scale=logit_scale,
            max_length=max_length,
            limit=limit,
            accumulate=accumulate,
            work=work,
            dtype=dtype,
            force=force,
            progress=console.progress,
            **read,
        )
    except FloatingPointError as error:
        raise FitDiverged(
            f"{error} (remove {folder} before a fit with other options)"
        ) from error
    except KeyboardInterrupt:
        if not quiet and folder.is_dir():
            print(f"stopped; the same command goes on from {folder}", file=sys.stderr)
        raise
    console.result(found.to_json(), lambda: _lines(found))


def _lines(found: "Learnt") -> Iterator[str]:
    recipe, saved = found.recipe, found.saved
    adapters, modules = len(found.adapters), len(saved.energy)
    yield f"{saved.path}: {adapters} adapters merged, {modules} modules"
    optimizer = recipe.pipeline.published.optimizer
    steps = f"{recipe.steps} steps of {optimizer} at {recipe.rate:g}"
    steps += " in each block" if recipe.unit == "block" else ""
    steps = "layers in closed form" if recipe.unit == "layer" else steps
    yield f"  learned   {recipe.pipeline.text}, {steps}"
    if found.outcome.start is not None:
        yield f"  start     all coefficients {found.outcome.start:.3g}, found by search"
    ends = found.objective
    yield f"  objective {recipe.objective}, {ends['first']:.4f} to {ends['last']:.4f}"
    for task, loss in found.losses.items():
        yield (
            f"  {recipe.loss} of {task}: {loss['first']:.4f} to {loss['last']:.4f}, "
            f"{loss['alone']:.4f} with its own adapter alone"
        )
    for task, then in found.outcome.before.items():
        now = found.outcome.after[task]
        yield (
            f"  predicts  {task}: entropy of the mean {then.mean_entropy:.3f} to "
            f"{now.mean_entropy:.3f}, largest class {then.largest_share:.1%} to "
            f"{now.largest_share:.1%}"
        )
    yield from written_lines(saved, found.size, found.seconds, found.notes)
