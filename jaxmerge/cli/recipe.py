"""A merge as it is asked for and recorded: pipeline, weights, seed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxmerge.spec import Pipeline, PipelineError, parse

if TYPE_CHECKING:
    from jaxmerge.io import Adapters
    from jaxmerge.types import AdapterStack, Update

_DENSE_BYTES = 2**30  # what the dense updates of one chunk of modules may take


@dataclass(frozen=True)
class Recipe:
    """How adapters are merged; with the adapters it determines the result.

    Attributes:
      pipeline: what to run.
      weights: one for each adapter, None for ones.
      seed: of the random steps, None if there are none.
    """

    pipeline: Pipeline
    weights: tuple[float, ...] | None = None
    seed: int | None = None

    def __post_init__(self):
        if self.pipeline.random and self.seed is None:
            raise PipelineError(
                f"pipeline {self.pipeline.text!r} draws at random, so it needs a seed; "
                "give --seed 0, or any other number"
            )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Recipe":
        """What `to_record` gave."""
        weights = record.get("weights")
        return cls(
            pipeline=parse(record["pipeline"]),
            weights=None if weights is None else tuple(weights),
            seed=record.get("seed"),
        )

    def to_record(self) -> dict[str, Any]:
        """As JSON values; what plays no part is left out."""
        record: dict[str, Any] = {"pipeline": self.pipeline.text}
        if self.weights is not None:
            record["weights"] = list(self.weights)
        if self.pipeline.random:
            record["seed"] = self.seed
        return record

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
        """
        import jax

        key = jax.random.key(self.seed) if self.pipeline.random else None
        options = {"weights": self.weights, "key": key}
        merged = {}
        for stacks in self._groups(adapters.stacks):
            at_a_time = chunk or self._chunk(stacks)
            updates = self.pipeline.run(stacks, chunk=at_a_time, **options)
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
        """Modules of one shape together, or all if the pipeline needs them at once."""
        if any(call.name == "trim_whole_model" for call in self.pipeline.calls):
            yield dict(stacks)
            return
        groups: dict[Any, dict[str, AdapterStack]] = {}
        for module, stack in stacks.items():
            shape = (stack.a.shape, stack.b.shape, stack.ranks)
            groups.setdefault(shape, {})[module] = stack
        yield from groups.values()

    def _chunk(self, stacks: "Mapping[str, AdapterStack]") -> int | None:
        if all(call.name != "full" for call in self.pipeline.calls):
            return None
        largest = max(
            stack.b.shape[0] * stack.b.shape[1] * stack.a.shape[2] * stack.a.itemsize
            for stack in stacks.values()
        )
        fitting = max(1, _DENSE_BYTES // largest)
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
