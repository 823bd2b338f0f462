"""Statistics of the inputs of layers for every task, through the base model."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxmerge.io import Adapters
from jaxmerge.models import linear_layers, with_updates
from jaxmerge.processes import fetched
from jaxmerge.refusals import Refusal
from jaxmerge.spread import mesh_of_jobs, on_all, over_data
from jaxmerge.stacks import task_updates
from jaxmerge.stats.collection import collector
from jaxmerge.stats.moments import Statistics
from jaxmerge.tasks.base_layers import token_mask
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.batching import Crop, batches_of
from jaxmerge.tasks.heads import check_adapters
from jaxmerge.tasks.texts import cropped
from jaxmerge.tasks.unlabeled import Unlabeled
from jaxmerge.types import LowRank

Report = Callable[[str, int], None]


def measure(
    base: Base,
    unlabeled: Unlabeled,
    modules: Sequence[str],
    *,
    adapters: Adapters | None = None,
    batch: int = 16,
    sketch: int | None = None,
    crop: Crop = cropped,
    report: Report | None = None,
) -> Iterator[tuple[str, dict[str, Statistics]]]:
    """Statistics of the inputs of some layers, one task after the other.

    Everything is checked before the first task. Padding of texts does not count, and
    texts go through the model in the order of their lengths, which changes no sum.

    Args:
      base: the model.
      unlabeled: inputs of every task.
      modules: names of the layers.
      adapters: of the tasks; each is in the model for its own inputs. Without them the
        inputs are measured in the base as it is.
      batch: inputs that go through the model at a time.
      sketch: rows of a `Sketch` in the place of n x n.
      crop: makes the texts of a batch narrower.
      report: called with a task and the inputs of it that go in next.

    Returns:
      An iterator of (task, module -> statistics).

    Raises:
      ValueError: layers that the base does not run, or adapters that do not fit it or
        change more of it than their updates do; from the iterator, inputs that are not
        finite.
    """
    inputs = next(iter(unlabeled.inputs.values()))
    if adapters is not None:
        check_adapters(base, adapters, inputs)

    def apply(params: Any, inputs: Any) -> Any:
        params, updates = params
        return with_updates(base.apply, updates)(params, inputs)

    mask = token_mask(base, inputs, modules)
    collect = collector(apply, modules=modules, mask=mask, sketch=sketch)

    mesh = mesh_of_jobs("data")
    params = on_all(mesh, base.params)

    def of_task(task: str) -> dict[str, Statistics]:
        own = unlabeled.inputs[task]
        batches = batches_of(base, own, batch, crop=crop)
        if report is not None:
            batches = _reported(batches, partial(report, task))
        updates = on_all(mesh, _updates(adapters, task))
        found = collect((params, updates), (over_data(mesh, x) for x in batches))
        statistics = fetched(found)
        for module, value in statistics.items():
            if not all(np.isfinite(part).all() for part in value):
                raise Refusal(
                    f"{base.folder}: inputs of module {module!r} are NaN or infinite "
                    f"for task {task!r}"
                )
        return statistics

    return ((task, of_task(task)) for task in unlabeled.inputs)


def modules_ending(
    base: Base, unlabeled: Unlabeled, endings: Sequence[str]
) -> list[str]:
    """Linear layers of the base by the ends of their names, as PEFT's target_modules.

    Args:
      base: the model; only traced.
      unlabeled: inputs that it reads.
      endings: such as "q_proj" or "self_attn.q_proj".

    Raises:
      ValueError: an ending of no layer.
    """
    inputs = next(iter(unlabeled.inputs.values()))
    first = jax.tree.map(lambda x: x[:1], inputs)
    layers = linear_layers(base.apply, base.params, first)
    for ending in endings:
        if not any(_ends(layer, ending) for layer in layers):
            known = dict.fromkeys(layer.rpartition(".")[2] for layer in layers)
            raise Refusal(
                f"{base.folder}: no linear layer is named {ending!r}; there are "
                f"{', '.join(known)}"
            )
    return sorted(x for x in layers if any(_ends(x, ending) for ending in endings))


def _ends(layer: str, ending: str) -> bool:
    return layer == ending or layer.endswith(f".{ending}")


def _updates(adapters: Adapters | None, task: str) -> dict[str, LowRank]:
    if adapters is None:
        return {}
    return task_updates(adapters.stacks, adapters.names.index(task))


def _reported(batches: Iterator[Any], report: Callable[[int], None]) -> Iterator[Any]:
    for batch in batches:
        report(len(jax.tree.leaves(batch)[0]))
        yield batch
