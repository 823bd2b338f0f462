"""What a pipeline is given when it runs, checked against its steps and the adapters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxmerge.spec.grammar import PipelineError

if TYPE_CHECKING:
    import jax

    from jaxmerge.iterative import ModelSample
    from jaxmerge.moments import Statistics
    from jaxmerge.spec.pipeline import Pipeline
    from jaxmerge.types import AdapterStack

    Stacks = Mapping[str, AdapterStack]


def check_statistics(pipeline: "Pipeline", *, given: bool) -> None:
    """PipelineError if statistics are missing, or given to what reads none."""
    needing = ", ".join(c.name for c in pipeline.calls if c.step.statistics)
    if needing and not given:
        raise PipelineError(
            f"pipeline {pipeline.text!r} needs statistics of inputs ({needing}): write "
            "them with `jaxmerge collect` and give stats=<statistics>"
        )
    if given and pipeline.model:
        raise PipelineError(
            f"pipeline {pipeline.text!r} runs the model in every round, on the merge "
            "of the last one, so statistics cannot stand for the inputs; give a sample "
            "(--base and --data) in their place"
        )
    if given and not needing:
        raise PipelineError(
            f"pipeline {pipeline.text!r} uses no statistics of inputs; leave stats "
            "out, or merge with regmean or ssr"
        )


def checked_stats(
    pipeline: "Pipeline", stats: "Mapping[str, Statistics] | None", stacks: "Stacks"
) -> "Mapping[str, Statistics] | None":
    """Statistics that fit the adapters and the steps, or None where none are needed."""
    check_statistics(pipeline, given=stats is not None)
    if stats is None:
        return None
    from jaxmerge import regression
    from jaxmerge.moments import Sketch

    try:
        regression.check_statistics(stacks, stats)
    except ValueError as error:
        raise PipelineError(str(error)) from None
    shrinking = any(
        dict(c.arguments).get("off_diagonal", 1) != 1 for c in pipeline.calls
    )
    for module in stacks if shrinking else ():
        if isinstance(stats[module], Sketch):
            raise PipelineError(
                f"module {module!r}: off_diagonal needs exact moments, not a "
                "sketch; collect them without sketch=<rows>, or leave it out"
            )
    return stats


def check_sample(
    pipeline: "Pipeline", sample: "ModelSample | None", stacks: "Stacks"
) -> None:
    """Refuses a sample of other tasks, none where a step needs it, or one too many."""
    if pipeline.model != (sample is not None):
        needs = "needs a model and inputs: give" if pipeline.model else "needs no"
        raise PipelineError(
            f"pipeline {pipeline.text!r} {needs} sample=<jaxmerge.ModelSample>"
        )
    tasks = {len(stack.ranks) for stack in stacks.values()}
    if sample is not None and tasks != {len(sample.batches)}:
        raise PipelineError(
            f"the sample has inputs of {len(sample.batches)} tasks, the adapters "
            f"are of {sorted(tasks)}"
        )


def check_ranks(
    pipeline: "Pipeline", ranks_by_module: Mapping[str, Sequence[int]]
) -> None:
    """Refuses mixed ranks where a step needs equal ones; absent tasks have rank 0."""
    strict = [call.name for call in pipeline.calls if call.step.equal_ranks]
    for module, ranks in ranks_by_module.items() if strict else ():
        found = sorted({rank for rank in ranks if rank})
        if len(found) > 1:
            raise PipelineError(
                f"module {module!r}: {strict[0]} needs adapters of one rank, found "
                f"{found}; choose another method"
            )


def checked_key(pipeline: "Pipeline", key: "jax.Array | None") -> "jax.Array | None":
    """The key if a step draws at random, else None."""
    drawing = [call.name for call in pipeline.calls if call.step.random]
    if drawing and key is None:
        raise PipelineError(
            f"pipeline {pipeline.text!r} draws at random ({', '.join(drawing)}), so it "
            "needs key=jax.random.key(<seed>)"
        )
    return key if drawing else None


def check_weights(weights: Sequence[float], tasks: int) -> np.ndarray:
    """The weights as an array; PipelineError unless they are T finite numbers."""
    array = np.asarray(weights, np.float64)
    if array.shape != (tasks,):
        raise PipelineError(
            f"{array.size} weights for {tasks} adapters; give one for each, in order"
        )
    if not np.isfinite(array).all():
        raise PipelineError(f"weights must be finite numbers, got {list(weights)}")
    return array


def checked_weights(
    weights: Sequence[float] | None, stacks: "Stacks"
) -> np.ndarray | None:
    """The weights of the tasks of some adapters, None for ones."""
    if weights is None:
        return None
    tasks = len(next(iter(stacks.values())).ranks) if stacks else len(weights)
    return check_weights(weights, tasks)
