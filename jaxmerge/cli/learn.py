"""``jaxmerge learn``: adapters, their base and unlabeled data in, one adapter out."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import FitDiverged
from jaxmerge.cli.read_flags import Reading
from jaxmerge.reports.saved import saved_lines

if TYPE_CHECKING:
    from jaxmerge.jobs.learnt import Learnt


Loss = Literal["distillation", "features", "entropy", "information", "null-space"]
Objective = Literal["tchebycheff", "tchebycheff-absolute", "linear"]


@command(reads=Reading(heads="keep"))
def learn(
    console: Console,
    options: Options,
    *,
    folders: flags.Folders,
    base: flags.BaseFolder,
    data: flags.DataFolder,
    pipeline: flags.Pipeline,
    out: flags.Out,
    stats: flags.Stats = None,
    names: flags.Names = None,
    text_heads: flags.TextHeads = None,
    task_type: flags.ModelType = None,
    shared: bool = False,
    unit: Literal["model", "block", "layer"] = "model",
    loss: Loss | None = None,
    start: Literal["auto", "method"] = "auto",
    temperature: flags.Temperature = 1.0,
    teacher_top: Annotated[int | None, typer.Option(min=1, metavar="K")] = None,
    objective: Objective | None = None,
    preference: flags.Preference = None,
    alpha: float = 1.0,
    rate: float | None = None,
    schedule: Literal["constant", "cosine"] | None = None,
    steps: flags.Count = 500,
    batch: flags.Count = 16,
    seed: flags.Seed = 0,
    logit_scale: flags.LogitScale = None,
    max_length: flags.MaxLength = None,
    limit: flags.Limit = None,
    accumulate: bool = False,
    work: Path | None = None,
    dtype: flags.Dtype = None,
    force: flags.Force = False,
    distributed: flags.Distributed = False,
) -> None:
    """Learn how to merge adapters, from inputs without labels.

    Coefficients are fitted through the base model so that the merged model says of the
    inputs of every task what the task's own adapter says of them; --loss chooses
    another guide. If the command is stopped, the same command goes on from the last
    checkpoint. Exit code 1 if the fit diverges.

    Args:
      pipeline: A learned merger with what surrounds it, such as 'tara_b',
        'tara_a|calibrate' or 'adamerging|svc'.
      shared: Learn one coefficient of each task for all modules (AdaMerging).
      unit: What is learned at a time: all coefficients through the whole model, those
        of a block from its own outputs, or those of a linear layer in closed form. The
        latter two need the memory of one block.
      loss: Loss of each task: divergence from the predictions of its own adapter,
        distance from the features of its own adapter, entropy of the predictions (as
        in the papers), the same less the entropy of their mean, or the share of the
        inputs that its adapter no longer sees (NSC). The first unless given; of blocks
        and layers features.
      start: Begin at the scale that serves the objective best, or with the number that
        the pipeline gives as initial.
      teacher_top: Of causal language models: keep the K likeliest tokens of what each
        adapter says, and the probability of the rest; its hidden states, or 256 where
        adapters change lm_head, unless given.
      objective: Objective of all tasks together; that of the method's paper unless
        given: tchebycheff, for AdaMerging linear.
      preference: A number for each adapter, scaled to sum 1; equal ones unless given.
      alpha: Smoothing of the objective: a small number cares for the worst task only.
      rate: Learning rate; 0.02 for losses with a teacher, otherwise 0.001, unless
        given.
      schedule: Keep the rate, or let it fall to 0 at the last step; the latter for
        losses with a teacher unless given.
      steps: Number of steps of the optimiser, in each unit.
      batch: Number of inputs of each task in a step.
      seed: Seed of the batches.
      accumulate: Go through the tasks one after the other, which needs less memory.
      work: Folder of the checkpoints, for one fit at a time and apart from --out; it
        is kept. By default beside --out, and removed at the end.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every old step
    from jaxmerge.jobs import fitting

    folder = fitting.work_folder(work, out)
    try:
        found = fitting.learn(**options, progress=console.progress)
    except FloatingPointError as error:
        raise FitDiverged(
            f"{error} (remove {folder} before a fit with other options)"
        ) from error
    except KeyboardInterrupt:
        if not console.quiet and folder.is_dir():
            print(f"stopped; the same command goes on from {folder}", file=sys.stderr)
        raise
    console.show(found, _lines)


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
    yield from saved_lines(found)
