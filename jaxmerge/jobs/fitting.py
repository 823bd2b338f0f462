"""Adapters, their base and unlabeled inputs in, one learned merge out."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from jaxmerge import io
from jaxmerge.io.options import TaskType
from jaxmerge.io.staging import check_target
from jaxmerge.jobs.block_recipe import block_recipe, on_host
from jaxmerge.jobs.fit_recipe import fit_recipe, warnings
from jaxmerge.jobs.learn_recipe import WITH_HEADS, LearnRecipe, check_loss
from jaxmerge.jobs.learnt import Learnt
from jaxmerge.jobs.merging import size_of
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import (
    Folder,
    ReadOptions,
    paths_of,
    read_model_inputs,
    refusing_bad_input,
)
from jaxmerge.jobs.record_fields import STATISTICS
from jaxmerge.learning.null_space import check_seen
from jaxmerge.learning.teachers import tokens_kept
from jaxmerge.learning.work import Work, check_apart, work_folder, work_identity
from jaxmerge.processes import together
from jaxmerge.refusals import Option, Refusal
from jaxmerge.spec import Pipeline, parse
from jaxmerge.spec.checks import check_statistics
from jaxmerge.tasks.record import HISTORY_FILE, PHI_FILE


@together()
def learn(
    folders: Sequence[Folder],
    pipeline: str | Pipeline,
    *,
    base: Folder,
    data: Folder,
    out: Folder,
    stats: Folder | None = None,
    names: Sequence[str] | None = None,
    text_heads: Folder | None = None,
    task_type: TaskType | None = None,
    shared: bool = False,
    unit: str = "model",
    loss: str = "",
    start: str = "auto",
    temperature: float = 1.0,
    teacher_top: int | None = None,
    objective: str = "",
    preference: Sequence[float] | None = None,
    alpha: float = 1.0,
    rate: float | None = None,
    schedule: str = "",
    steps: int = 500,
    batch: int = 16,
    seed: int = 0,
    logit_scale: float | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    accumulate: bool = False,
    work: Folder | None = None,
    dtype: str | None = None,
    force: bool = False,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Learnt:
    """Learns how to merge adapters, from inputs without labels.

    Coefficients are fitted through the base model so that the merged model says of the
    inputs of every task what the task's own adapter says of them, or so that another
    loss without labels falls. A call that was stopped goes on from its last checkpoint
    when it is made again.

    Args:
      folders: PEFT adapter folders.
      pipeline: a learned merger with what surrounds it, such as ``"tara_b|svc"``.
      base: Hugging Face folder of the base model.
      data: folder with the inputs of each adapter, see `jaxmerge.tasks.load_unlabeled`.
      out: folder to create.
      stats: folder of `jaxmerge.collect`, for steps that need it.
      names: names of the tasks; by default those of the folders.
      text_heads: for CLIP: safetensors file with text vectors [classes, d] by the names
        of the tasks.
      task_type: "classification" or "causal", what the adapters are of; by default what
        their configs say.
      shared: learn one coefficient of each task for all modules (AdaMerging).
      unit: what is learned at a time: "model", all coefficients, by gradients through
        the whole model; "block", those of a block, from its own outputs, and then those
        of the next; "layer", those of a linear layer, from its own outputs, in closed
        form. The latter two need the memory of one block.
      loss: the loss of each task: "distillation", the default, is the divergence of its
        predictions from those of its own adapter; "features" the distance of its last
        hidden states from those of its own adapter; "entropy" that of its predictions,
        as TARA and AdaMerging were published; "information" the same less the entropy
        of their mean; "null-space" the share of the inputs outside of the row space of
        its adapter (NSC). Features and null spaces need no heads. Of blocks and layers
        it is "features": the relative squared distance of their outputs.
      start: "auto" begins at the scale that serves the objective best, "method" with
        the ``initial`` of the pipeline.
      temperature: of the predictions that are compared by distillation.
      teacher_top: of causal language models: how many of the likeliest next tokens are
        kept of what each adapter says, with the probability of all others together. By
        default its hidden states are kept, from which everything follows; where
        adapters change ``lm_head``, 256 tokens.
      objective: what the losses of all tasks become together: "tchebycheff",
        "tchebycheff-absolute" or "linear"; by default that of the method's source.
      preference: a number for each adapter, scaled to a sum of 1; equal by default.
      alpha: smoothing of the objective: a small one cares for the worst task only.
      rate: learning rate; 2e-2 for losses with a teacher, otherwise 1e-3.
      schedule: "constant", or "cosine", in which the rate falls to 0 at the last step;
        by default the latter for losses with a teacher.
      steps: number of steps of the optimiser, in each block where that is the unit.
      batch: inputs of each task in a step.
      seed: seed from which the batches are drawn.
      logit_scale: multiplies the logits; what the base stores unless given.
      max_length: number of tokens to which texts are truncated.
      limit: largest number of inputs of a task, at even distances; all unless given.
        Each own adapter answers all of them once before the first step.
      accumulate: go through the tasks one after the other, which needs less memory.
      work: folder of the checkpoints, for one fit at a time and apart from ``out``; it
        is kept. By default it lies beside ``out``, and is removed at the end.
      dtype: dtype of the output; by default that of the inputs.
      force: replace ``out`` if it is an adapter folder with nothing else in it.
      progress: shows how far the job is.
      **read: see `jaxmerge.io.load_peft`; saved modules are kept unless given.

    Returns:
      `Learnt`.

    Raises:
      Refusal: what cannot be learned as asked for; says what to do instead.
      FloatingPointError: the fit diverged.
    """
    clock, out = time.perf_counter(), Path(out)
    inputs = paths_of(*folders, base, data, text_heads, work, stats)
    check_target(out, force=force, inputs=inputs)
    checkpoints = work_folder(work, out)
    check_apart(checkpoints, out)
    shares = [1.0] * len(folders) if preference is None else list(preference)
    if len(shares) != len(folders):
        raise Refusal(
            Option("preference"),
            f" has {len(shares)} numbers for {len(folders)} adapters",
        )
    recipe = LearnRecipe(
        pipeline=parse(pipeline) if isinstance(pipeline, str) else pipeline,
        shared=shared,
        unit=unit,
        loss=loss,
        start=start,
        temperature=temperature,
        teacher_top=teacher_top,
        objective=objective,
        preference=tuple(shares),
        alpha=alpha,
        rate=rate,
        schedule=schedule,
        steps=steps,
        batch=batch,
        seed=seed,
        accumulate=accumulate,
    )
    check_statistics(recipe.pipeline, given=stats is not None)
    loss = recipe.loss
    if loss not in WITH_HEADS:
        _refuse_given(loss, text_heads=text_heads, logit_scale=logit_scale)
    with nullcontext() if unit == "model" else on_host():
        adapters, model, heads, unlabeled, files = read_model_inputs(
            folders,
            base=base,
            data=data,
            names=names,
            text_heads=text_heads,
            task_type=task_type,
            max_length=max_length,
            limit=limit,
            with_heads=loss in WITH_HEADS,
            with_digests=True,
            progress=progress,
            read={"heads": "keep", **read},
        )
    with refusing_bad_input():
        check_loss(loss, Option("loss", loss, quoted=True), causal=model.causal)
        if loss in WITH_HEADS:
            recipe = replace(recipe, logit_scale=model.scale(logit_scale))
        if loss == "distillation":
            top = tokens_kept(model, adapters, teacher_top)
            recipe = replace(recipe, teacher_top=top)
        if loss == "null-space":
            check_seen(adapters.names, adapters.stacks)
        asked = recipe.to_record() | ({"task_type": "causal"} if model.causal else {})
        asked |= {} if limit is None else {"limit": limit}
        told = None
        if stats is not None:
            of_tasks = io.open_statistics(stats).of_adapters(adapters)
            told = of_tasks.load(adapters.stacks)
            files |= {STATISTICS: {"path": str(stats), "sha256": of_tasks.sha256}}
        identity = work_identity(asked, adapters, unlabeled, files)
        kept = Work(checkpoints, identity)
    with kept:
        shown: dict[str, Any] = {"work": kept, "progress": progress, "stats": told}
        if unit == "model":
            outcome = fit_recipe(recipe, model, adapters, heads, unlabeled, **shown)
        else:
            outcome = block_recipe(recipe, model, adapters, unlabeled, **shown)
        record = {
            **asked,
            "max_length": unlabeled.max_length,
            "anchors": outcome.anchors,
            "files": files,
        }
        history = outcome.history._asdict()
        with progress("writing and reading back", 1) as advance:
            saved = io.save_peft(
                out,
                outcome.updates,
                like=adapters,
                dtype=dtype,
                card=record,
                extra_files={PHI_FILE: outcome.phis, HISTORY_FILE: history},
                force=force,
                inputs=inputs,
            )
            advance(1)
        if work is None:
            kept.remove()
    return Learnt(
        recipe=recipe,
        adapters=adapters.names,
        outcome=outcome,
        saved=saved,
        record=record,
        seconds=time.perf_counter() - clock,
        size=size_of(out, saved.files),
        notes=(
            *adapters.notes,
            *unlabeled.notes,
            *warnings(recipe, outcome, adapters.names),
        ),
    )


def _refuse_given(loss: str, **options: Any) -> None:
    """Refuses options of predictions where the loss makes none."""
    for name, value in options.items():
        if value is not None:
            raise Refusal(
                Option("loss", loss, quoted=True),
                " needs no predictions; leave out ",
                Option(name),
            )
