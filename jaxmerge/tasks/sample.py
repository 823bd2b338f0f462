"""A base model and inputs of every task, for mergers that run the model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxmerge.folders import Folder
from jaxmerge.io import Adapters
from jaxmerge.io.options import TaskType
from jaxmerge.mergers.iteris import ModelSample
from jaxmerge.models import layer_weights
from jaxmerge.tasks.base_layers import token_mask
from jaxmerge.tasks.bases import Base, load_base
from jaxmerge.tasks.batching import batches_of
from jaxmerge.tasks.heads import check_adapters
from jaxmerge.tasks.record import digests, steady
from jaxmerge.tasks.task_types import task_type_of
from jaxmerge.tasks.unlabeled import Unlabeled, load_unlabeled


class SampleFiles(NamedTuple):
    """A base model and inputs of every task, as they were read.

    Attributes:
      base: the model.
      files: what `digests` gave before they were loaded.
      unlabeled: inputs of every task.
      batch: inputs that go through the model at a time.
      limit: inputs of a task at most, None for all.
    """

    base: Base
    files: Mapping[str, Any]
    unlabeled: Unlabeled
    batch: int
    limit: int | None

    def to_record(self) -> dict[str, Any]:
        """What a merge of this sample depends on, as JSON values with digests."""
        sample: dict[str, Any] = {
            "batch": self.batch,
            "limit": self.limit,
            "max_length": self.unlabeled.max_length,
        }
        if self.base.causal:
            sample["task_type"] = "causal"
        return {"sample": sample, "files": dict(self.files)}

    def of(self, adapters: Adapters) -> ModelSample:
        """The sample for `Pipeline.run`, its tasks in the order of the adapters."""
        inputs = [self.unlabeled.inputs[task] for task in adapters.names]
        batches = [list(batches_of(self.base, x, self.batch)) for x in inputs]
        return model_sample(self.base, batches, list(adapters.stacks))


def model_sample(
    base: Base, batches: Sequence[Sequence[Any]], modules: Sequence[str]
) -> ModelSample:
    """A base model and inputs of every task, as `Pipeline.run` takes them.

    Args:
      base: the model.
      batches: for each task a list of its batches.
      modules: names of the layers that adapters change.
    """
    first = batches[0][0]
    return ModelSample(
        apply=base.apply,
        params=base.params,
        batches=batches,
        mask=token_mask(base, first, modules),
        base=layer_weights(base.params, modules, apply=base.apply, batch=first),
    )


def read_sample(
    adapters: Adapters,
    base: Folder,
    data: Folder,
    *,
    batch: int = 16,
    limit: int | None = None,
    max_length: int | None = None,
    task_type: TaskType | None = None,
    files: Mapping[str, Any] | None = None,
) -> SampleFiles:
    """Reads the base of some adapters and inputs of their tasks.

    Args:
      adapters: to be merged, read with their heads.
      base: folder, see `load_base`.
      data: folder, see `load_unlabeled`.
      batch: inputs that go through the model at a time.
      limit: largest number of inputs of a task.
      max_length: number of tokens to which texts are truncated.
      task_type: what the adapters are of; by default what their configs say.
      files: as `digests` gives them, where they are known already.

    Raises:
      ValueError: files that cannot be used, or adapters that do not fit the base or
        change more of it than their updates do.
    """
    kind = task_type_of(adapters, task_type)
    with steady(base, data, adapters.names, task_type=kind) as groups:
        if files is None:
            files = digests(groups)
        model = load_base(base, kind)
        unlabeled = load_unlabeled(
            data, adapters.names, model, max_length=max_length, limit=limit
        )
    check_adapters(model, adapters, unlabeled.inputs[adapters.names[0]])
    return SampleFiles(model, files, unlabeled, batch, limit)
