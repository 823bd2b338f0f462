"""A merge as it is asked for and recorded: pipeline, weights, seed, statistics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from jaxmerge.spec import Pipeline, PipelineError, parse

if TYPE_CHECKING:
    from jaxmerge.io import Adapters, StatisticsFolder
    from jaxmerge.types import AdapterStack, Update

ROLE = "statistics"  # of the files that a merge reads beside the adapters
_BYTES_AT_A_TIME = 2**30  # of the dense updates or the statistics of some modules
_BYTES_OF_A_NUMBER = 4  # in the statistics


@dataclass(frozen=True)
class Recipe:
    """How adapters are merged; with the adapters it determines the result.

    Attributes:
      pipeline: what to run.
      weights: one for each adapter, None for ones.
      seed: of the random steps, None if there are none.
      statistics: of the inputs of the tasks, None if no step needs them.
    """

    pipeline: Pipeline
    weights: tuple[float, ...] | None = None
    seed: int | None = None
    statistics: "StatisticsFolder | None" = None

    def __post_init__(self):
        self.pipeline.check_statistics(given=self.statistics is not None)
        if self.pipeline.random and self.seed is None:
            raise PipelineError(
                f"pipeline {self.pipeline.text!r} draws at random, so it needs a seed; "
                "give --seed 0, or any other number"
            )

    @classmethod
    def from_record(
        cls,
        record: Mapping[str, Any],
        statistics: "StatisticsFolder | None" = None,
    ) -> "Recipe":
        """What `to_record` gave, with the statistics where they are now."""
        weights = record.get("weights")
        return cls(
            pipeline=parse(record["pipeline"]),
            weights=None if weights is None else tuple(weights),
            seed=record.get("seed"),
            statistics=statistics,
        )

    def to_record(self) -> dict[str, Any]:
        """As JSON values; what plays no part is left out."""
        record: dict[str, Any] = {"pipeline": self.pipeline.text}
        if self.weights is not None:
            record["weights"] = list(self.weights)
        if self.pipeline.random:
            record["seed"] = self.seed
        if self.statistics is not None:
            files = {"path": str(self.statistics.path)}
            record["files"] = {ROLE: files | {"sha256": self.statistics.sha256}}
        return record

    def for_tasks(self, tasks: Sequence[str]) -> "Recipe":
        """The recipe with the statistics of these tasks, in their order."""
        if self.statistics is None:
            return self
        return replace(self, statistics=self.statistics.of(tasks))

    def check_statistics(self, *adapters: Any, **options: Any) -> None:
        """`StatisticsFolder.check`, if there are statistics."""
        if self.statistics is not None:
            self.statistics.check(*adapters, **options)

    def run(
        self,
        adapters: "Adapters",
        *,
        chunk: int | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> "tuple[dict[str, Update], dict[str, Any]]":
        """Merges, shape after shape.

        Args:
          adapters: what to merge.
          chunk: modules of one shape worked on at a time; unless given, all, or in
            full space as many as keep the dense updates below 1 GiB.
          advance: called with the number of modules that are done.

        Returns:
          module -> update, and module -> merged LoRA bias.

        Raises:
          PipelineError: the pipeline does not suit the adapters, or a merged update
            is not finite.
          AdapterError: the statistics are not of these adapters.
        """
        import jax

        self.check_statistics(
            {module: stack.a.shape[-1] for module, stack in adapters.stacks.items()},
            [source.base_model for source in adapters.sources],
            allow_different_bases=adapters.options.allow_different_bases,
        )
        if self.statistics is not None:
            self.statistics.check_adapters(adapters.sources)
            self.statistics.check_files()
        key = jax.random.key(self.seed) if self.pipeline.random else None
        options = {"weights": self.weights, "key": key}
        merged = {}
        for stacks in self._groups(adapters.stacks):
            at_a_time = chunk or self._chunk(stacks)
            stats = None if self.statistics is None else self.statistics.load(stacks)
            updates = self.pipeline.run(stacks, chunk=at_a_time, stats=stats, **options)
            merged |= jax.block_until_ready(updates)
            advance(len(stacks))
        _check_finite(merged)
        biases = self.pipeline.merge_biases(
            adapters.biases, adapters.stacks, weights=self.weights
        )
        return {module: merged[module] for module in adapters.stacks}, biases

    def _groups(
        self, stacks: "Mapping[str, AdapterStack]"
    ) -> "Iterator[dict[str, AdapterStack]]":
        """Modules of one shape together, or all if the pipeline needs them at once.

        Of modules with statistics only as many as keep these below 1 GiB.
        """
        if any(call.name == "trim_whole_model" for call in self.pipeline.calls):
            yield dict(stacks)
            return
        groups: dict[Any, dict[str, AdapterStack]] = {}
        for module, stack in stacks.items():
            shape = (stack.a.shape, stack.b.shape, stack.ranks)
            groups.setdefault(shape, {})[module] = stack
        for group in groups.values():
            if self.statistics is None:
                yield group
                continue
            names = iter(group)
            largest = max(map(self.statistics.size, group))
            count = max(1, _BYTES_AT_A_TIME // (_BYTES_OF_A_NUMBER * largest))
            while some := tuple(islice(names, count)):
                yield {module: group[module] for module in some}

    def _chunk(self, stacks: "Mapping[str, AdapterStack]") -> int | None:
        if all(call.name != "full" for call in self.pipeline.calls):
            return None
        largest = max(
            stack.b.shape[0] * stack.b.shape[1] * stack.a.shape[2] * stack.a.itemsize
            for stack in stacks.values()
        )
        fitting = max(1, _BYTES_AT_A_TIME // largest)
        return None if fitting >= len(stacks) else fitting


def _check_finite(updates: "Mapping[str, Update]") -> None:
    """Names the modules whose update holds NaN or Inf, which nothing can serve."""
    import jax
    import numpy as np

    broken = [
        module
        for module, update in updates.items()
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(update))
    ]
    if broken:
        from jaxmerge.io.errors import listing

        raise PipelineError(
            f"the merge is NaN or infinite in {len(broken)} modules "
            f"({listing(broken)}); the numbers of the pipeline or the weights are too "
            "large for float32"
        )
