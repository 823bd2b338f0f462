"""A merge as it is asked for and recorded: pipeline, weights, seed, statistics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmerge.spec import Pipeline, PipelineError, check_statistics, parse

if TYPE_CHECKING:
    from jaxmerge.io import Adapters, StatisticsFolder
    from jaxmerge.tasks import SampleFiles
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
      sample: the base and inputs for a step that runs the model; None if there is none,
        and before it is read.
    """

    pipeline: Pipeline
    weights: tuple[float, ...] | None = None
    seed: int | None = None
    statistics: "StatisticsFolder | None" = None
    sample: "SampleFiles | None" = None

    def __post_init__(self):
        check_statistics(self.pipeline, given=self.statistics is not None)
        if self.pipeline.random and self.seed is None:
            raise PipelineError(
                f"pipeline {self.pipeline.text!r} draws at random, so it needs a seed; "
                "give --seed 0, or any other number"
            )

    @classmethod
    def from_record(
        cls,
        record: Mapping[str, Any],
        adapters: "Adapters",
        read: Mapping[str, Path],
    ) -> "Recipe":
        """What `to_record` gave.

        Args:
          record: of the recipe.
          adapters: that were merged.
          read: where the folders are now that the merge read, by their role.
        """
        from jaxmerge.io import open_statistics

        weights = record.get("weights")
        recipe = cls(
            pipeline=parse(record["pipeline"]),
            weights=None if weights is None else tuple(weights),
            seed=record.get("seed"),
            statistics=open_statistics(read[ROLE]) if ROLE in read else None,
        )
        places = {role: read.get(role) for role in ("base", "data")}
        sample = record.get("sample", {})
        return recipe.bound(adapters, **places, **sample, files=record.get("files"))

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
        if self.sample is not None:
            record |= self.sample.to_record()
        return record

    def bound(
        self,
        adapters: "Adapters",
        *,
        base: Path | None = None,
        data: Path | None = None,
        batch: int = 16,
        limit: int | None = None,
        max_length: int | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> "Recipe":
        """The recipe for these adapters: statistics of their tasks, a sample read.

        Args:
          adapters: to be merged.
          base: folder, for a step that runs the model.
          data: folder of its inputs.
          batch: inputs at a time, see `jaxmerge.tasks.read_sample`.
          limit: inputs of a task at most.
          max_length: tokens of a text.
          files: digests of base and data, where they are known already.

        Raises:
          ValueError: what was read does not belong together.
        """
        self.check_model(base, data)
        recipe = self.for_tasks(adapters.names)
        if not self.pipeline.model:
            return recipe
        from jaxmerge.tasks import read_sample

        options = {"batch": batch, "limit": limit, "max_length": max_length}
        sample = read_sample(adapters, base, data, files=files, **options)
        return replace(recipe, sample=sample)

    def check_model(self, base: Path | None, data: Path | None) -> None:
        """Refuses folders of a model that nothing runs, and none where one is run."""
        if self.pipeline.model and (base is None or data is None):
            raise PipelineError(
                f"pipeline {self.pipeline.text!r} runs the model in every round; give "
                "--base and --data"
            )
        if not self.pipeline.model and (base, data) != (None, None):
            raise PipelineError(
                f"pipeline {self.pipeline.text!r} runs no model; leave --base and "
                "--data out"
            )

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
        sample = None if self.sample is None else self.sample.of(adapters)
        options = {"weights": self.weights, "key": key, "sample": sample}
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
        whole = any(call.name == "trim_whole_model" for call in self.pipeline.calls)
        if whole or self.pipeline.model:
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
