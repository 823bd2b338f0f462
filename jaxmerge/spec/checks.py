"""What a pipeline is given when it runs, checked against its steps and the adapters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmerge.refusals import Option
from jaxmerge.spec.grammar import PipelineError

if TYPE_CHECKING:
    import jax

    from jaxmerge.mergers.iteris import ModelSample
    from jaxmerge.spec.pipeline import Pipeline
    from jaxmerge.stats.moments import Statistics
    from jaxmerge.types import AdapterStack, Update

    Stacks = Mapping[str, AdapterStack]


def check_statistics(pipeline: "Pipeline", *, given: bool) -> None:
    """PipelineError if statistics are missing, or given to what reads none."""
    needing = ", ".join(c.name for c in pipeline.calls if c.step.statistics)
    if needing and not given:
        raise PipelineError(
            f"pipeline {pipeline.text!r} needs statistics of inputs ({needing}): "
            "collect them, and give ",
            Option("stats", "<statistics>"),
        )
    if given and pipeline.model:
        raise PipelineError(
            f"pipeline {pipeline.text!r} runs the model in every round, on the merge "
            "of the last one, so statistics cannot stand for the inputs; give the base "
            "and inputs in their place, and leave out ",
            Option("stats"),
        )
    if given and not needing:
        raise PipelineError(
            f"pipeline {pipeline.text!r} uses no statistics of inputs; leave out ",
            Option("stats"),
            ", or merge with regmean or ssr",
        )


def check_adapters(pipeline: "Pipeline", stacks: "Stacks") -> None:
    """Refuses what is no stack of adapters for each module."""
    from jaxmerge.doors import check_model

    check_model(f"pipeline {pipeline.text!r}", stacks)


def check_loaded(
    pipeline: "Pipeline", stacks: "Stacks", stats: "Mapping[str, Statistics]"
) -> None:
    """Refuses statistics of other adapters, and sketches where moments are needed."""
    from jaxmerge.stats import matching
    from jaxmerge.stats.moments import Sketch

    try:
        matching.check_statistics(stacks, stats)
    except ValueError as error:
        raise PipelineError(str(error)) from None
    shrinking = any(
        dict(c.arguments).get("off_diagonal", 1) != 1 for c in pipeline.calls
    )
    for module in stacks if shrinking else ():
        if isinstance(stats[module], Sketch):
            raise PipelineError(
                f"module {module!r}: off_diagonal needs exact moments, not a sketch; "
                "collect them without ",
                Option("sketch", "<rows>"),
                ", or leave it out",
            )


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


def check_coefficients(
    pipeline: "Pipeline", phis: Mapping[str, Any] | None, weights: Any
) -> None:
    """Refuses a learned pipeline without its coefficients, and coefficients without."""
    if pipeline.learned and phis is None:
        raise PipelineError(
            f"pipeline {pipeline.text!r} has coefficients that must be learned first "
            "(jaxmerge.learn); then give phis=<coefficients>"
        )
    if pipeline.learned and weights is not None:
        raise PipelineError(
            f"pipeline {pipeline.text!r} learns the weight of every task; leave out ",
            Option("weights"),
        )
    if not pipeline.learned and phis is not None:
        raise PipelineError(
            f"pipeline {pipeline.text!r} has no learned coefficients; leave phis out"
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


def check_weighted(pipeline: "Pipeline", weights: Any) -> None:
    """Refuses weights where a merger takes none."""
    heedless = [call.name for call in pipeline.calls if not call.step.weighted]
    if heedless and weights is not None:
        raise PipelineError(
            f"pipeline {pipeline.text!r}: {heedless[0]} takes no weights; leave out ",
            Option("weights"),
            ", or let its function take them",
        )


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


def check_finite(updates: "Mapping[str, Update]") -> None:
    """Names the modules whose update holds NaN or Inf, which nothing can serve.

    The factors of an update may be finite where their product is not.
    """
    broken = [
        repr(module) for module, update in updates.items() if not _is_finite(update)
    ]
    if broken:
        more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
        raise PipelineError(
            f"the merge is NaN or infinite in {len(broken)} modules "
            f"({', '.join(broken[:4])}{more}); the numbers of the pipeline or the "
            "weights are too large for float32"
        )


def _is_finite(update: "Update") -> bool:
    import jax
    from jax.core import Tracer

    from jaxmerge.types import LowRank

    leaves = jax.tree.leaves(update)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return True
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        return False
    return not isinstance(update, LowRank) or _has_finite_product(*leaves)


def _has_finite_product(b: "jax.Array", a: "jax.Array") -> bool:
    import jax.numpy as jnp

    largest = float(jnp.finfo(b.dtype).max)
    columns, rows = (
        np.abs(np.asarray(x)).max(axis=axis, initial=0).astype(np.float64)
        for x, axis in ((b, 0), (a, 1))
    )
    with np.errstate(over="ignore", invalid="ignore"):
        if columns @ rows <= largest:
            return True
        product = np.asarray(b, np.float64) @ np.asarray(a, np.float64)
        return bool((np.abs(product) <= largest).all())
