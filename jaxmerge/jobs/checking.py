"""Is each adapter, alone, better than no adapter at all?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from jaxmerge.diagnostics.alone import Standing, alone
from jaxmerge.diagnostics.likelihood import (
    TextStanding,
    hardly_known,
    likelihoods,
    texts_alone,
)
from jaxmerge.io.options import TaskType
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import (
    Folder,
    ReadOptions,
    read_model_inputs,
    refusing_bad_input,
)
from jaxmerge.refusals import Option, Refusal
from jaxmerge.tasks import Base, load_labels

_REMEDY = (
    "give the number of its class as field label of every line, or in the array labels"
)


@dataclass(frozen=True)
class Checked:
    """How every adapter stands against its base.

    Attributes:
      base: folder of the model.
      data: folder of the inputs.
      logit_scale: what multiplied the logits.
      max_length: tokens to which texts were truncated; None for images.
      standings: task -> what was found.
      files: task -> folder of its adapter, and file of its inputs.
      notes: what a reader should know.
    """

    base: str
    data: str
    logit_scale: float
    max_length: int | None
    standings: dict[str, Standing] | dict[str, TextStanding]
    files: dict[str, dict[str, str]]
    notes: tuple[str, ...]

    @property
    def worse(self) -> tuple[str, ...]:
        """Tasks whose adapter clearly loses against its base."""
        return tuple(task for task, found in self.standings.items() if found.is_worse)

    @property
    def verdict(self) -> str:
        """Who got which verdict."""
        return _verdict(self.standings)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "base": self.base,
            "data": self.data,
            "logit_scale": self.logit_scale,
            "max_length": self.max_length,
            "adapters": {
                task: {**self.files[task], **found.to_json()}
                for task, found in self.standings.items()
            },
            "verdict": self.verdict,
            "notes": list(self.notes),
        }


def check(
    folders: Sequence[Folder],
    *,
    base: Folder,
    data: Folder,
    names: Sequence[str] | None = None,
    text_heads: Folder | None = None,
    task_type: TaskType | None = None,
    limit: int | None = None,
    batch: int = 64,
    logit_scale: float | None = None,
    max_length: int | None = None,
    strict: bool = False,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Checked:
    """Tests each adapter alone against its base, on its own labeled data.

    The base gets the adapter's head. A difference in accuracy is clear where McNemar's
    exact test gives p below 0.05. Without labels only predictions are compared. For
    causal language models nats per token of the completions are compared, and how many
    of the texts became likelier, by a sign test.

    Args:
      folders: PEFT adapter folders.
      base: Hugging Face folder of the base model.
      data: folder with the inputs of each adapter and their classes, see
        `jaxmerge.tasks.load_labels`.
      names: names of the tasks; by default those of the folders.
      text_heads: for CLIP: file with text vectors, see `jaxmerge.learn`.
      task_type: what the adapters are of, see `jaxmerge.learn`.
      limit: number of inputs of each task, taken at even distances; by default all.
      batch: number of inputs that go through the model at a time.
      logit_scale: multiplies the logits; what the base stores unless given.
      max_length: number of tokens to which texts are truncated.
      strict: refuse data without labels.
      progress: shows how far the job is.
      **read: see `jaxmerge.io.load_peft`.

    Returns:
      `Checked`.

    Raises:
      Refusal: files that do not belong together; data without labels, if ``strict``.
    """
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
        read={"heads": "keep", "allow_zero": True, **read},
    )
    passes = 2 * sum(map(unlabeled.count, adapters.names))
    with refusing_bad_input(), progress("checking", passes) as advance:
        scale = model.scale(logit_scale)
        how: dict[str, Any] = {
            "batch": batch,
            "report": lambda task, count: advance(count, title=f"checking {task}"),
        }
        if model.causal:
            found = texts_alone(adapters, likelihoods(model, unlabeled, **how))
        else:
            labels = load_labels(data, unlabeled, heads)
            if strict:
                _refuse_unlabeled(labels)
            inputs = (model, adapters, heads, unlabeled, labels)
            found = alone(*inputs, logit_scale=scale, **how)
    pairs = zip(adapters.names, adapters.sources, unlabeled.files, strict=True)
    return Checked(
        base=str(base),
        data=str(data),
        logit_scale=scale,
        max_length=unlabeled.max_length,
        standings=found,
        files={task: {"path": x.path, "file": file} for task, x, file in pairs},
        notes=(*adapters.notes, *unlabeled.notes, *_notes(model, found)),
    )


def _refuse_unlabeled(labels: Mapping[str, Any]) -> None:
    bare = [task for task, found in labels.items() if found is None]
    if bare:
        raise Refusal(
            *(Option("strict", "True"), f": the data of {', '.join(bare)} have no "),
            "labels, so nothing says whether an adapter is worse than its base; "
            f"{_REMEDY}, or leave out ",
            Option("strict"),
        )


def _notes(model: Base, found: Mapping[str, Standing | TextStanding]) -> Iterator[str]:
    texts = {t: x.base_nats for t, x in found.items() if isinstance(x, TextStanding)}
    yield from hardly_known(model, texts)
    for task, standing in found.items():
        if isinstance(standing, TextStanding):
            continue
        score = standing.score
        if score is None:
            yield (
                f"the data of {task} have no labels, which accuracy needs: {_REMEDY}"
            )
        elif score.accuracy <= score.most_frequent:
            yield (
                f"{task} is right no more often than one answer for all would be, the "
                f"most frequent class ({score.most_frequent:.1%})"
            )


def _verdict(found: Mapping[str, Standing | TextStanding]) -> str:
    """Who got which verdict.

    >>> zero = Standing(8, False, 0.1, 0.1, 1.0, None)
    >>> _verdict({"cars": zero, "dtd": zero._replace(changes=True)})
    'does nothing: cars; no labels: dtd'
    """
    groups: dict[str, list[str]] = {}
    for task, standing in found.items():
        groups.setdefault(standing.verdict, []).append(task)
    return "; ".join(f"{says}: {', '.join(tasks)}" for says, tasks in groups.items())
