"""What a pipeline is given when it runs, checked against its steps and the adapters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmerge.refusals import Option
from jaxmerge.spec.grammar import PipelineError
from jaxmerge.spec.kinds import EACH
from jaxmerge.spec.layerwise import module_values, varies

if TYPE_CHECKING:
    import jax

    from jaxmerge.mergers.iteris import ModelSample
    from jaxmerge.spec.layerwise import PerModule
    from jaxmerge.spec.pipeline import Pipeline
    from jaxmerge.stats.moments import Statistics
    from jaxmerge.types import AdapterStack, Update

    Stacks = Mapping[str, AdapterStack]
    Numbers = np.ndarray | Mapping[str, np.ndarray] | None


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


def check_weights(
    weights: Sequence[float], tasks: int, *, name: str = "weights"
) -> np.ndarray:
    """The weights as an array; PipelineError unless they are T finite numbers."""
    array = np.asarray(weights, np.float64)
    if array.shape != (tasks,):
        raise PipelineError(
            f"{array.size} {name} for {tasks} adapters; give one for each, in order"
        )
    if not np.isfinite(array).all():
        raise PipelineError(f"{name} must be finite numbers, got {list(weights)}")
    return array


def check_count(numbers: "PerModule | None", tasks: int, name: str) -> None:
    """PipelineError unless numbers of tasks are of T tasks, as far as that is known."""
    rows = numbers.values() if isinstance(numbers, Mapping) else (numbers,)
    for row in rows:
        if isinstance(row, Sequence) and len(row) != tasks:
            raise PipelineError(
                f"{len(row)} {name} for {tasks} adapters; give one for each, in order"
            )


def checked_weights(weights: "PerModule | None", stacks: "Stacks") -> "Numbers":
    """Weights [T] of some adapters, or module -> [T]; None for ones."""
    return None if weights is None else _numbers(weights, stacks, "weights")


def check_densities(pipeline: "Pipeline", densities: Any) -> None:
    """Refuses missing densities of tasks, and those that no step asks for."""
    steps = [c.name for c in pipeline.calls if EACH in dict(c.arguments).values()]
    if len(steps) > 1:
        raise PipelineError(
            f"pipeline {pipeline.text!r}: {' and '.join(steps)} both take the density "
            "of each task; write a number in one of them"
        )
    option = Option("densities", "<number>,<number>")
    if steps and densities is None:
        raise PipelineError(
            f"pipeline {pipeline.text!r}: {steps[0]} takes a density of each task; "
            "give ",
            option,
        )
    if not steps and densities is not None:
        raise PipelineError(
            f"pipeline {pipeline.text!r} asks for no density of each task; write "
            f"density={EACH} in one of its steps, or leave out ",
            Option("densities"),
        )


def checked_densities(
    pipeline: "Pipeline", densities: "PerModule | None", stacks: "Stacks"
) -> dict[str, Any]:
    """The input ``densities``, [T] or module -> [T], if the pipeline asks for it.

    Raises:
      PipelineError: there are none, or the step that asks cannot use them.
    """
    check_densities(pipeline, densities)
    if densities is None:
        return {}
    found = _numbers(densities, stacks, "densities")
    (call,) = (c for c in pipeline.calls if EACH in dict(c.arguments).values())
    by_module = found if isinstance(found, Mapping) else {"": found}
    if isinstance(found, Mapping) and call.step.kind == "whole-model transform":
        raise PipelineError(
            f"pipeline {pipeline.text!r}: {call.name} has one threshold of each task "
            "for all modules, so that a density cannot differ between them; trim each "
            "module by itself, with trim"
        )
    for module, shares in by_module.items():
        where = f"densities of module {module!r}" if module else "densities"
        for share in shares.tolist():
            problem = call.step.problem({**dict(call.arguments), "density": share})
            if not 0 < share <= 1:
                problem = f"expected numbers in (0, 1], got {share}"
            if problem:
                raise PipelineError(f"{where}: {problem}")
    return {"densities": found}


def _numbers(given: Any, stacks: "Stacks", name: str) -> Any:
    """[T], or module -> [T], of what says the numbers of each task."""
    counts = {len(stack.ranks) for stack in stacks.values()}
    tasks = counts.pop() if counts else None
    if callable(given):
        given = {module: given(module) for module in stacks}
    elif not isinstance(given, Mapping) and varies(given):
        given = module_values(given, stacks, name=name)
    if not isinstance(given, Mapping):
        return check_weights(given, len(given) if tasks is None else tasks, name=name)
    missing = [module for module in stacks if module not in given]
    if missing:
        raise PipelineError(f"{name}: none are given for module {missing[0]!r}")
    return {
        module: check_weights(given[module], len(stack.ranks), name=name)
        for module, stack in stacks.items()
    }


def check_finite(updates: "Mapping[str, Update]") -> None:
    """Names the modules whose update holds NaN or Inf, which nothing can serve.

    The factors of an update may be finite where their product is not.
    """
    broken = [
        repr(module) for module, update in updates.items() if not _is_finite(update)
    ]
    if broken:
        more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
        count = "a module" if len(broken) == 1 else f"{len(broken)} modules"
        raise PipelineError(
            f"the merge is NaN or infinite in {count} "
            f"({', '.join(broken[:4])}{more}); the numbers of the pipeline or the "
            "weights are too large for float32"
        )


def _is_finite(update: "Update") -> bool:
    import jax
    from jax.core import Tracer

    from jaxmerge.magnitudes import peak
    from jaxmerge.types import LowRank

    leaves = jax.tree.leaves(update)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return True
    if not all(np.isfinite(peak(leaf)) for leaf in leaves):
        return False
    return not isinstance(update, LowRank) or _has_finite_product(*leaves)


def _has_finite_product(b: "jax.Array", a: "jax.Array") -> bool:
    import jax.numpy as jnp

    from jaxmerge.magnitudes import peak

    largest = float(jnp.finfo(b.dtype).max)
    columns, rows = (
        peak(x, axis=axis).astype(np.float64) for x, axis in ((b, 0), (a, 1))
    )
    with np.errstate(over="ignore", invalid="ignore"):
        if columns @ rows <= largest:
            return True
        product = np.asarray(b, np.float64) @ np.asarray(a, np.float64)
        return bool((np.abs(product) <= largest).all())
