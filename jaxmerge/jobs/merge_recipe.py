"""A merge as it is asked for and recorded: pipeline, weights, seed, statistics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmerge.disk import Unchanged
from jaxmerge.folders import Folder
from jaxmerge.io.options import TaskType
from jaxmerge.jobs.record_fields import STATISTICS
from jaxmerge.refusals import Option
from jaxmerge.spec import (
    Pipeline,
    PipelineError,
    check_densities,
    check_statistics,
    check_weighted,
    parse,
)
from jaxmerge.spec.layerwise import PerModule, as_given

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxmerge.io import Adapters, StatisticsFolder
    from jaxmerge.stats.moments import Statistics
    from jaxmerge.tasks import SampleFiles
    from jaxmerge.types import Update


@dataclass(frozen=True)
class MergeRecipe:
    """How adapters are merged; with the adapters it determines the result.

    Attributes:
      pipeline: what to run.
      weights: one for each adapter, None for ones; see `jaxmerge.Pipeline.run`.
      densities: one for each adapter, where the pipeline asks for them; None otherwise.
      left_out: what takes no part, ``task@block``: the adapter of a task in all modules
        whose name is, or begins with, that of the block.
      seed: seed of the steps that draw at random; None if there are none.
      statistics: statistics of the inputs of the tasks; None if no step needs them.
      sample: the base and inputs for a step that runs the model; None if there is none,
        and before it is read.
    """

    pipeline: Pipeline
    weights: PerModule | None = None
    densities: PerModule | None = None
    seed: int | None = None
    statistics: "StatisticsFolder | None" = None
    sample: "SampleFiles | None" = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pipeline.learned:
            raise PipelineError(
                f"pipeline {self.pipeline.text!r} has coefficients to learn, from a "
                "base and inputs: use `jaxmerge.learn`"
            )
        check_statistics(self.pipeline, given=self.statistics is not None)
        check_weighted(self.pipeline, self.weights)
        check_densities(self.pipeline, self.densities)
        if self.pipeline.random and self.seed is None:
            raise PipelineError(
                f"pipeline {self.pipeline.text!r} draws at random, so it needs a seed; "
                "give ",
                Option("seed", "0"),
                ", or any other number",
            )

    @classmethod
    def from_record(
        cls,
        record: Mapping[str, Any],
        adapters: "Adapters",
        read: Mapping[str, Path],
    ) -> "MergeRecipe":
        """The recipe that `to_record` described.

        Args:
          record: what `to_record` gave.
          adapters: the adapters that were merged.
          read: folders that the merge read, by their role, where they are now.
        """
        from jaxmerge.io import open_statistics

        where = read.get(STATISTICS)
        recipe = cls(
            pipeline=parse(record["pipeline"]),
            weights=as_given(record.get("weights"), "weights"),
            densities=as_given(record.get("densities"), "densities"),
            seed=record.get("seed"),
            left_out=tuple(record.get("left_out", ())),
            statistics=open_statistics(where) if where is not None else None,
        )
        return recipe.bound(
            adapters,
            base=read.get("base"),
            data=read.get("data"),
            files=record.get("files"),
            **record.get("sample", {}),
        )

    def to_record(self) -> dict[str, Any]:
        """As JSON values; what plays no part is left out."""
        record: dict[str, Any] = {"pipeline": self.pipeline.text}
        if self.pipeline.own_steps:
            record["own_steps"] = self.pipeline.own_steps
        for name in ("weights", "densities"):
            numbers = getattr(self, name)
            if numbers is not None:
                table = isinstance(numbers, Mapping)
                record[name] = dict(numbers) if table else list(numbers)
        if self.left_out:
            record["left_out"] = list(self.left_out)
        if self.pipeline.random:
            record["seed"] = self.seed
        if self.statistics is not None:
            known = self.statistics
            entry = {"path": str(known.path), "sha256": known.sha256}
            record["files"] = {STATISTICS: entry}
        if self.sample is not None:
            record |= self.sample.to_record()
        return record

    def bound(
        self,
        adapters: "Adapters",
        *,
        base: Folder | None = None,
        data: Folder | None = None,
        batch: int = 16,
        limit: int | None = None,
        max_length: int | None = None,
        task_type: TaskType | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> "MergeRecipe":
        """The recipe for these adapters: statistics of their tasks, a sample read.

        Args:
          adapters: the adapters to be merged.
          base: folder, for a step that runs the model.
          data: folder of its inputs.
          batch: inputs at a time, see `jaxmerge.tasks.read_sample`.
          limit: largest number of inputs of a task.
          max_length: number of tokens to which texts are truncated.
          task_type: what the adapters are of; by default what their configs say.
          files: digests of base and data, where they are known already.

        Raises:
          ValueError: what was read does not belong together.
        """
        self.check_model(base, data)
        recipe = self.for_tasks(adapters.names).for_modules(list(adapters.stacks))
        if base is None or data is None:  # then no step runs the model
            return recipe
        from jaxmerge.tasks import read_sample

        sample = read_sample(
            *(adapters, base, data),
            batch=batch,
            limit=limit,
            max_length=max_length,
            task_type=task_type,
            files=files,
        )
        return replace(recipe, sample=sample)

    def check_model(self, base: Folder | None, data: Folder | None) -> None:
        """Refuses folders of a model that nothing runs, and none where one is run."""
        if self.pipeline.model and (base is None or data is None):
            raise PipelineError(
                f"pipeline {self.pipeline.text!r} runs the model in every round; give ",
                Option("base"),
                " and ",
                Option("data"),
            )
        if not self.pipeline.model and (base, data) != (None, None):
            raise PipelineError(
                f"pipeline {self.pipeline.text!r} runs no model; leave ",
                Option("base"),
                " and ",
                Option("data"),
                " out",
            )

    def for_tasks(self, tasks: Sequence[str]) -> "MergeRecipe":
        """The recipe with the statistics of these tasks, in their order."""
        if self.statistics is None:
            return self
        return replace(self, statistics=self.statistics.of(tasks))

    def for_modules(self, modules: Sequence[str]) -> "MergeRecipe":
        """The recipe with what functions say of these modules, in their place."""

        def called(numbers: PerModule | None, name: str) -> PerModule | None:
            if not callable(numbers):
                return numbers
            return as_given({module: numbers(module) for module in modules}, name)

        return replace(
            self,
            weights=called(self.weights, "weights"),
            densities=called(self.densities, "densities"),
        )

    def check_statistics(self, *adapters: Any, **options: Any) -> None:
        """`StatisticsFolder.check`, if there are statistics."""
        if self.statistics is not None:
            self.statistics.check(*adapters, **options)

    def run(
        self,
        adapters: "Adapters",
        *,
        chunk: int | None = None,
        memory: int | None = None,
        mesh: "Mesh | None" = None,
        advance: Callable[[int], None] | None = None,
    ) -> "tuple[dict[str, Update], dict[str, Any]]":
        """Merges all modules and their LoRA biases.

        Args:
          adapters: what to merge; streamed ones give streamed updates.
          chunk: see `jaxmerge.Pipeline.run`, and so ``memory`` and ``mesh``.
          advance: called with the number of modules that are done.

        Returns:
          module -> update, and module -> merged LoRA bias.

        Raises:
          PipelineError: the pipeline does not suit the adapters, or a merged update
            is not finite.
          AdapterError: the statistics are not of these adapters.
        """
        import jax

        statistics = None
        if self.statistics is not None:
            statistics = _Unchanging(self.statistics)
            self.statistics.check_all(adapters)
        pipeline, seed = self.pipeline, self.seed
        kept = adapters.without(self.left_out)
        updates = pipeline.run(
            kept.stacks,
            weights=self.weights,
            densities=self.densities,
            key=jax.random.key(seed) if pipeline.random and seed is not None else None,
            stats=statistics,
            sample=None if self.sample is None else self.sample.of(kept),
            chunk=chunk,
            memory=memory,
            mesh=mesh,
            gather=True,
            report=advance,
        )
        biases = pipeline.merge_biases(kept.biases, kept.stacks, weights=self.weights)
        return updates, biases


class _Unchanging:
    """Statistics of files that are refused if they change from now on."""

    def __init__(self, statistics: "StatisticsFolder"):
        self._statistics = statistics
        files = (statistics.path / name for name in statistics.sha256)
        self._unchanged = Unchanged(files)

    def load(self, modules: Iterable[str]) -> "dict[str, Statistics]":
        """module -> statistics of all tasks, as they were when this was made."""
        found = self._statistics.load(modules)
        self._unchanged.refuse()
        return found

    def size(self, module: str) -> int:
        """How many numbers the statistics of a module have."""
        return self._statistics.size(module)
