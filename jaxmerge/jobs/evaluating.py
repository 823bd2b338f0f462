"""A merged folder on every task, beside the base and the own adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from jaxmerge import io
from jaxmerge.diagnostics.evaluation import Evaluation, evaluate_merge
from jaxmerge.diagnostics.likelihood import hardly_known, likelihoods
from jaxmerge.diagnostics.text_evaluation import TextEvaluation, evaluate_texts
from jaxmerge.io.options import TaskType
from jaxmerge.io.stored import recorded_inputs
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import (
    Folder,
    ReadOptions,
    labels_of_all,
    read_model_inputs,
    refusing_bad_input,
)
from jaxmerge.reports.scores import check_plot, write_plot
from jaxmerge.stacks import task_updates
from jaxmerge.tasks import predictor
from jaxmerge.tasks.base_layers import check_layers


@dataclass(frozen=True)
class Evaluated:
    """A merge that was measured.

    Attributes:
      merged: its folder.
      base: folder of the model.
      data: folder of the inputs.
      evaluation: what was found.
      notes: what a reader should know.
      plot: file that was written.
    """

    merged: str
    base: str
    data: str
    evaluation: Evaluation | TextEvaluation
    notes: tuple[str, ...]
    plot: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "plot": None if self.plot is None else str(self.plot),
            "merged": self.merged,
            "base": self.base,
            "data": self.data,
            **self.evaluation.to_json(),
            "notes": list(self.notes),
        }


def evaluate(
    merged: Folder,
    folders: Sequence[Folder] | None = None,
    *,
    base: Folder,
    data: Folder,
    names: Sequence[str] | None = None,
    text_heads: Folder | None = None,
    task_type: TaskType | None = None,
    limit: int | None = None,
    batch: int = 64,
    max_length: int | None = None,
    plot: Folder | None = None,
    force: bool = False,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Evaluated:
    """Measures a merged adapter on labeled data of every task.

    Accuracies of the base, of the task's own adapter and of the merge, each with the
    own adapter's head; and that of the merge divided by that of the own adapter, with
    95 % intervals of the paired bootstrap.

    For causal language models nats per token of the completions, and of what the own
    adapter gains over the base the share that the merge keeps.

    Args:
      merged: PEFT folder of the merge.
      folders: the adapters it was made of; those of its record unless given.
      base: Hugging Face folder of the base model.
      data: folder with the inputs of each task and their classes, see
        `jaxmerge.tasks.load_labels`; texts for causal language models.
      names: of the tasks; those of the record or of the folders unless given.
      text_heads: for CLIP: file with text vectors, see `jaxmerge.learn`.
      task_type: what the adapters are of, see `jaxmerge.learn`.
      limit: number of inputs of each task, taken at even distances; by default all.
      batch: number of inputs that go through the model at a time.
      max_length: number of tokens to which texts are truncated.
      plot: file for a plot, as PNG.
      force: replace the plot.
      progress: shows how far the job is.
      **read: see `jaxmerge.io.load_peft`.

    Returns:
      `Evaluated`.

    Raises:
      Refusal: data without labels, or files that do not belong together.
    """
    drawn = None if plot is None else Path(plot)
    check_plot(drawn, force=force)
    if folders is None:
        folders, recorded = recorded_inputs(Path(merged))
        names = recorded if names is None else names
    options: ReadOptions = {"heads": "keep", "allow_zero": True, **read}
    adapters, model, heads, unlabeled, _ = read_model_inputs(
        folders,
        base=base,
        data=data,
        names=names,
        text_heads=text_heads,
        task_type=task_type,
        max_length=max_length,
        limit=limit,
        progress=progress,
        read=options,
    )
    strange: tuple[str, ...] = ()
    passes = 3 * sum(map(unlabeled.count, adapters.names))
    with refusing_bad_input(), progress("evaluating", passes) as advance:
        whole = io.load_peft([merged], heads="keep", allow_zero=True)
        some = unlabeled.inputs[adapters.names[0]]
        check_layers(model, whole, some, with_heads=True)
        updates = task_updates(whole.stacks, 0)
        own = {
            task: task_updates(adapters.stacks, index)
            for index, task in enumerate(adapters.names)
        }
        how: dict[str, Any] = {
            "batch": batch,
            "report": lambda task, count: advance(count, title=f"evaluating {task}"),
        }
        if model.causal:
            found = evaluate_texts(likelihoods(model, unlabeled, **how), own, updates)
            nats = {task: x.nats.base for task, x in found.tasks.items()}
            strange = tuple(hardly_known(model, nats))
        else:
            labels = labels_of_all(data, unlabeled, heads)
            predict = predictor(model, heads, unlabeled, **how)
            found = evaluate_merge(predict, own, updates, labels)
    if drawn is not None:
        write_plot(found, drawn)
    return Evaluated(
        merged=str(merged),
        base=str(base),
        data=str(data),
        evaluation=found,
        notes=(*adapters.notes, *unlabeled.notes, *found.notes, *strange),
        plot=drawn,
    )
