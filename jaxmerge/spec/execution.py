"""A pipeline and the adapters of a model -> its merged updates."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxmerge.processes import several
from jaxmerge.spec import checks
from jaxmerge.spec import memory as at_work
from jaxmerge.spec.build import model_merger
from jaxmerge.streamed import Streamed, described, each
from jaxmerge.types import AdapterStack, ModelMerger, Update

if TYPE_CHECKING:
    from jaxmerge.spec.pipeline import Pipeline


def run(
    pipeline: "Pipeline",
    stacks: Mapping[str, AdapterStack],
    *,
    weights: Any,
    densities: Any,
    key: Any,
    stats: Any,
    sample: Any,
    phis: Mapping[str, Any] | None,
    chunk: int | None,
    memory: int | None,
    mesh: Any,
    gather: bool,
    report: Callable[[int], None] | None,
) -> dict[str, Update]:
    """See `jaxmerge.Pipeline.run`."""
    checks.check_adapters(pipeline, stacks)
    shapes = described(stacks)
    checks.check_ranks(pipeline, {name: x.ranks for name, x in shapes.items()})
    checks.check_statistics(pipeline, given=stats is not None)
    checks.check_sample(pipeline, sample, shapes)
    checks.check_coefficients(pipeline, phis, weights)
    checks.check_weighted(pipeline, weights)
    given: dict[str, Any] = {
        "weights": checks.checked_weights(weights, shapes),
        "key": checks.checked_key(pipeline, key),
        "mesh": mesh,
        "gather": gather or several(),
    }
    given |= checks.checked_densities(pipeline, densities, shapes)
    if sample is not None:
        given["sample"] = sample
    merger, given["factor"] = _merger(pipeline, phis)
    if isinstance(stacks, Streamed) and not at_work.needs_all(pipeline, memory):
        together = mesh is not None or chunk is not None
        some = at_work.bounded(
            pipeline, stacks, stats, memory=memory, together=together
        )
        if stats is not None:
            given["stats"] = at_work.loading(pipeline, some, stats)
        at_a_time = chunk or at_work.chunk(pipeline, shapes)
        return each(merger(some, chunk=at_a_time, **given), partial(_done, report))
    merged: dict[str, Update] = {}
    for group, loaded in at_work.groups(pipeline, stacks, stats):
        if loaded is not None:
            checks.check_loaded(pipeline, group, loaded)
            given["stats"] = loaded
        at_a_time = chunk or at_work.chunk(pipeline, group)
        merged |= merger(group, chunk=at_a_time, **given)
        if report is not None:
            report(len(group))
    checks.check_finite(merged)
    return {module: merged[module] for module in stacks}


def _merger(
    pipeline: "Pipeline", phis: Mapping[str, Any] | None
) -> tuple[ModelMerger, float]:
    """The merge, and by what its last scales multiply it."""
    from jaxmerge.spec.pipeline import factor_of

    if phis is not None:
        from jaxmerge.learning.apply import apply_learned

        return apply_learned(pipeline.learnable(), phis), 1.0
    calls, factor = list(pipeline.calls), 1.0
    while calls[-1].step.multiplies:
        factor *= factor_of(calls.pop())
    return model_merger(tuple(calls)), factor


def _done(report: Callable[[int], None] | None, module: str, update: Update) -> Update:
    """An update of a module that is finite; the module is reported."""
    checks.check_finite({module: update})
    if report is not None:
        report(1)
    return update
