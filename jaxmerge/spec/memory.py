"""In which groups the modules of a model are merged, so that memory stays bounded."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from jaxmerge.spec.pipeline import Pipeline
    from jaxmerge.stats.moments import Statistics
    from jaxmerge.types import AdapterStack

BYTES_AT_A_TIME = 2**30  # of the dense updates or the statistics of some modules
_BYTES_OF_A_NUMBER = 4  # in the statistics


class LoadsStatistics(Protocol):
    """Statistics that are read when they are needed."""

    def load(self, modules: Iterable[str]) -> "dict[str, Statistics]":
        """module -> statistics of all tasks, stacked."""
        ...

    def size(self, module: str) -> int:
        """How many numbers the statistics of a module have."""
        ...


def groups(
    pipeline: "Pipeline",
    stacks: "Mapping[str, AdapterStack]",
    stats: "Mapping[str, Statistics] | LoadsStatistics | None",
) -> "Iterator[tuple[dict[str, AdapterStack], Mapping[str, Statistics] | None]]":
    """Modules to merge in one call, with their statistics where there are any.

    Modules of one shape together, or all if the pipeline needs them at once. Where
    statistics are loaded, as many as keep these below 1 GiB.
    """
    if pipeline.whole:
        yield dict(stacks), None
        return
    by_shape: dict[Any, dict[str, AdapterStack]] = {}
    for module, stack in stacks.items():
        shape = (stack.a.shape, stack.b.shape, stack.ranks)
        by_shape.setdefault(shape, {})[module] = stack
    for group in by_shape.values():
        if stats is None:
            yield group, None
        elif isinstance(stats, Mapping):
            yield group, stats
        else:
            names = iter(group)
            largest = max(map(stats.size, group))
            count = max(1, BYTES_AT_A_TIME // (_BYTES_OF_A_NUMBER * largest))
            while some := tuple(islice(names, count)):
                yield {module: group[module] for module in some}, stats.load(some)


def chunk(pipeline: "Pipeline", stacks: "Mapping[str, AdapterStack]") -> int | None:
    """Number of modules whose dense updates stay below 1 GiB; None where all do."""
    if not any(call.step.dense for call in pipeline.calls):
        return None
    largest = max(
        stack.b.shape[0] * stack.b.shape[1] * stack.a.shape[2] * stack.a.itemsize
        for stack in stacks.values()
    )
    fitting = max(1, BYTES_AT_A_TIME // largest)
    return None if fitting >= len(stacks) else fitting
