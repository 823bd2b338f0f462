"""Pipelines as text: ``elect|trim(density=0.2)|core|scale(0.3)``.

A pipeline is read from left to right, and every step works on what stands on its left,
as in ``then(core_space(trim(elect, density=0.2)), partial(scale, by=0.3))``:

    rule | rule transforms | space | merger transforms | posts
    merger                         | merger transforms | posts

So of two rule transforms the right one meets the adapters first: the pipeline
``elect|dare(density=0.5)|trim(density=0.2)|full`` trims, then drops at random, then
elects (`Pipeline.order` says it). A single name from `jaxmerge.spec.presets` stands for
a published method.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from jaxmerge.spec import checks
from jaxmerge.spec.grammar import Call, PipelineError, as_text, read_calls

if TYPE_CHECKING:  # imported by `run`: reading a pipeline does not need JAX
    import jax
    from jax.sharding import Mesh

    from jaxmerge.iterative import ModelSample
    from jaxmerge.moments import Statistics
    from jaxmerge.types import AdapterStack, Update


@dataclass(frozen=True)
class Pipeline:
    """A merge, ready to run; made by `parse`.

    Attributes:
      calls: its steps with their arguments, from left to right.
    """

    calls: tuple[Call, ...]

    @property
    def text(self) -> str:
        """The pipeline in one spelling, presets and aliases written out.

        ``parse(pipeline.text) == pipeline``.
        """
        return as_text(self.calls)

    def __str__(self) -> str:
        return self.text

    @property
    def order(self) -> tuple[str, ...]:
        """The steps in the order in which the adapters meet them.

        >>> parse("elect|dare(density=0.5)|trim(density=0.2)|full|scale(0.3)").order
        ('full', 'trim(density=0.2)', 'dare(density=0.5)', 'elect', 'scale(0.3)')
        """
        posts = [call for call in self.calls if call.step.kind == "post"]
        others = self.calls[: len(self.calls) - len(posts)]
        return tuple(map(str, [*reversed(others), *posts]))

    @property
    def random(self) -> bool:
        """Whether a step draws at random, so that `run` needs a key."""
        return any(call.step.random for call in self.calls)

    @property
    def statistics(self) -> bool:
        """Whether a step needs statistics of inputs, so that `run` needs ``stats``."""
        return any(call.step.statistics for call in self.calls)

    @property
    def model(self) -> bool:
        """Whether a step runs the base model, so that `run` needs a ``sample``."""
        return any(call.step.model for call in self.calls)

    @property
    def linear(self) -> bool:
        """Whether the merged update is a weighted sum of the adapters' updates.

        Steps that drop entries at random count as linear: in the mean they are.
        """
        return all(call.step.linear for call in self.calls)

    @property
    def dense(self) -> bool:
        """Whether merged updates are dense: made in full space, and not truncated."""
        names = {call.name for call in self.calls}
        return "full" in names and "truncate" not in names

    @property
    def scale(self) -> float:
        """The product of all ``scale(..)`` steps."""
        return math.prod(_scale(call) for call in self.calls if call.name == "scale")

    def run(
        self,
        stacks: "Mapping[str, AdapterStack]",
        *,
        weights: Sequence[float] | None = None,
        key: "jax.Array | None" = None,
        stats: "Mapping[str, Statistics] | None" = None,
        sample: "ModelSample | None" = None,
        chunk: int | None = None,
        mesh: "Mesh | None" = None,
    ) -> "dict[str, Update]":
        """Merges the adapters of a whole model.

        A pipeline is built once in a process and compiled once for each shape of
        modules; pipelines that differ in their last scale only share their programs.

        Args:
          stacks: module -> its T adapters.
          weights: [T], multiply the updates of the tasks; ones unless given.
          key: needed if `random`, not used otherwise.
          stats: module -> statistics of the inputs of all tasks, stacked
            (`jaxmerge.stack_moments`); needed if `statistics`, refused otherwise.
          sample: `jaxmerge.ModelSample`, the base model and inputs of every task;
            needed if `model`, refused otherwise.
          chunk: modules of one shape worked on at a time, see `jaxmerge.map_modules`.
          mesh: devices, see `jaxmerge.map_modules`.

        Returns:
          module -> merged update, in the order of ``stacks``.

        Raises:
          PipelineError: no key for a random pipeline; weights that are not T finite
            numbers; mixed ranks where a step needs equal ones; no statistics where a
            step needs them, those of other modules, tasks or inputs, or some that
            nothing would read; the same for a sample.

        >>> import jaxmerge as jm
        >>> stack = jm.stack_adapters([([[1.0]], [[2.0]]), ([[3.0]], [[1.0]])])
        >>> merged = jm.parse("concat|scale(0.5)").run({"q_proj": stack})
        >>> print(jm.dense(merged["q_proj"]))
        [[2.5]]
        """
        from jaxmerge.spec.build import merge_of

        checks.check_ranks(self, {name: x.ranks for name, x in stacks.items()})
        checks.check_sample(self, sample, stacks)
        needed = {"stats": checks.checked_stats(self, stats, stacks), "sample": sample}
        calls, by = list(self.calls), 1.0
        while calls[-1].name == "scale":
            by *= _scale(calls.pop())
        return merge_of(tuple(calls))(
            stacks,
            by=by,
            weights=checks.checked_weights(weights, stacks),
            key=checks.checked_key(self, key),
            chunk=chunk,
            mesh=mesh,
            **{name: value for name, value in needed.items() if value is not None},
        )

    def merge_biases(
        self,
        biases: "Mapping[str, jax.Array]",
        stacks: "Mapping[str, AdapterStack]",
        *,
        weights: Sequence[float] | None = None,
    ) -> "dict[str, jax.Array]":
        """Merges the biases that some LoRA layers have beside their update.

        A linear pipeline combines them as it combines the updates. Any other one takes
        their mean over the tasks that adapt the module, as the official codes of TSV-M
        and Iso-C do with all vectors. Weights and scales apply in both cases.

        Args:
          biases: module -> [T, m], zero where a task has none.
          stacks: module -> its T adapters.
          weights: [T], as in `run`.

        Returns:
          module -> [m].
        """
        import jax.numpy as jnp

        given = checks.checked_weights(weights, stacks)
        summed = self.linear and self.calls[0].name in ("total", "concat")
        merged = {}
        for module, bias in biases.items():
            share = self.scale / (1 if summed else len(stacks[module].present))
            each = np.full(bias.shape[0], share) if given is None else share * given
            merged[module] = jnp.asarray(each, bias.dtype) @ bias
        return merged


@cache
def parse(text: str) -> Pipeline:
    """Reads a pipeline from text.

    Args:
      text: steps separated by ``|``, or the name of a preset. Arguments are given by
        name, except in ``scale(0.3)``.

    Returns:
      `Pipeline`.

    Raises:
      PipelineError: an unknown name (with the nearest one), a wrong order (with what is
        expected), a missing, unknown or impossible argument.

    >>> parse("task_arithmetic | scale( by=3e-1 )").text
    'concat|scale(0.3)'
    >>> parse("knots_ties").text
    'elect|trim_whole_model(density=0.2)|knots|scale(0.6)'
    >>> parse("elect|core|scal(0.3)")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    jaxmerge.spec.grammar.PipelineError: ... 'scal'; did you mean 'scale'?
    """
    try:
        return Pipeline(read_calls(text))
    except PipelineError as error:
        shown = text if len(str(text)) <= 200 else f"{text[:197]}..."
        raise PipelineError(f"pipeline {shown!r}: {error}") from None


def _scale(call: Call) -> float:
    return dict(call.arguments)["by"]
