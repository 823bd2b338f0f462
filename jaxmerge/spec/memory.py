"""In which groups the modules of a model are merged, so that memory stays bounded."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from jaxmerge.refusals import Option
from jaxmerge.spec import checks
from jaxmerge.spec.grammar import PipelineError
from jaxmerge.streamed import Streamed, described, in_groups

if TYPE_CHECKING:
    from jaxmerge.spec.pipeline import Pipeline
    from jaxmerge.stats.moments import Statistics
    from jaxmerge.types import AdapterStack

BYTES_AT_A_TIME = 2**30  # of the dense updates or the statistics of some modules
_COPIES = 8  # of the adapters of a module in float32: bases, coordinates, the update
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
    if pipeline.whole or pipeline.learned:
        if stats is not None and not isinstance(stats, Mapping):
            stats = stats.load(tuple(stacks))
        yield dict(stacks), stats
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
    if not _dense(pipeline):
        return None
    largest = max(map(_bytes_of_updates, stacks.values()))
    fitting = max(1, BYTES_AT_A_TIME // largest)
    return None if fitting >= len(stacks) else fitting


def needs_all(pipeline: "Pipeline", memory: int | None) -> bool:
    """Whether a pipeline needs the adapters of all modules at once, in memory.

    Raises:
      PipelineError: it does, and there is a bound.
    """
    if pipeline.model and memory is not None:
        raise PipelineError(
            f"pipeline {pipeline.text!r} runs the model with the adapters of all "
            "modules, so that its memory has no bound; leave out ",
            Option("memory"),
        )
    return pipeline.model or pipeline.learned


def bounded(
    pipeline: "Pipeline",
    stacks: "Streamed[AdapterStack]",
    stats: "Mapping[str, Statistics] | LoadsStatistics | None",
    *,
    memory: int | None,
    together: bool,
) -> "Streamed[AdapterStack]":
    """Adapters of which as many modules are read at a time as are merged together.

    That is one on a CPU, unless a chunk or a mesh asks for some ``together``; elsewhere
    as many neighbours as fit into ``memory``, or into 1 GiB. A module counts with what
    is computed from it, estimated as eight times its adapters in float32, with its
    statistics and, in full space, its dense updates.

    Raises:
      PipelineError: one module alone needs more than ``memory``.
    """
    import jax

    sizes = {module: _needs(pipeline, x) for module, x in described(stacks).items()}
    if stats is not None and not isinstance(stats, Mapping):
        for module in sizes:
            sizes[module] += _BYTES_OF_A_NUMBER * stats.size(module)
    largest = max(sizes, key=sizes.__getitem__)
    if memory is not None and sizes[largest] > memory:
        raise PipelineError(
            f"module {largest!r} alone needs about {sizes[largest] / 1e6:,.0f} MB to "
            "be merged; give at least ",
            Option("memory", str(sizes[largest])),
        )
    if not together and jax.default_backend() == "cpu":
        return stacks.regrouped((module,) for module in sizes)
    return stacks.regrouped(in_groups(sizes, memory or BYTES_AT_A_TIME))


def loading(
    pipeline: "Pipeline",
    stacks: "Streamed[AdapterStack]",
    stats: "Mapping[str, Statistics] | LoadsStatistics",
) -> "Mapping[str, Statistics]":
    """The statistics of streamed adapters, loaded with them and checked."""
    shapes = described(stacks)
    if isinstance(stats, Mapping):
        checks.check_loaded(pipeline, shapes, stats)
        return stats

    def load(names: Iterable[str]) -> "dict[str, Statistics]":
        found = stats.load(names)
        checks.check_loaded(pipeline, {name: shapes[name] for name in names}, found)
        return found

    def describe() -> "dict[str, Statistics]":
        return {name: _shapes_of(load([name])[name]) for name in shapes}

    return Streamed(stacks.groups, load, describe)


def _shapes_of(values: "Statistics") -> "Statistics":
    """The same tree with shapes in the place of arrays, which can then be let go."""
    import jax

    return jax.eval_shape(lambda: values)


def _dense(pipeline: "Pipeline") -> bool:
    return any(call.step.dense for call in pipeline.calls)


def _needs(pipeline: "Pipeline", stack: "AdapterStack") -> int:
    factors = (stack.a.size + stack.b.size) * stack.a.dtype.itemsize
    return _COPIES * factors + 2 * _dense(pipeline) * _bytes_of_updates(stack)


def _bytes_of_updates(stack: "AdapterStack") -> int:
    """Bytes of the dense updates of all tasks."""
    tasks, m, _ = stack.b.shape
    return tasks * m * stack.a.shape[2] * stack.a.dtype.itemsize
