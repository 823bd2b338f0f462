"""Pipelines as text: ``elect|trim(density=0.2)|core|scale(0.3)``.

A pipeline is read from left to right, and every step works on what stands on its left,
as in ``then(core_space(trim(elect, density=0.2)), partial(scale, by=0.3))``:

    rule | rule transforms | space | calibrations | posts
    merger or learned merger       | calibrations | posts

So of two rule transforms the right one meets the adapters first: the pipeline
``elect|dare(density=0.5)|trim(density=0.2)|full`` trims, then drops at random, then
elects (`Pipeline.order` says it). A single name from `jaxmerge.spec.presets` stands for
a published method.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jaxmerge.refusals import Option
from jaxmerge.spec.grammar import Call, PipelineError, as_text, read_calls
from jaxmerge.spec.kinds import EACH
from jaxmerge.spec.steps import names_of

if TYPE_CHECKING:  # imported by `run`: reading a pipeline does not need JAX
    import jax
    from jax.sharding import Mesh

    from jaxmerge.mergers.iteris import ModelSample
    from jaxmerge.spec.kinds import Published
    from jaxmerge.spec.layerwise import PerModule
    from jaxmerge.spec.memory import LoadsStatistics
    from jaxmerge.stats.moments import Statistics
    from jaxmerge.types import AdapterStack, Learned, Update


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
    def each(self) -> bool:
        """Whether each task has a density of its own, so `run` needs ``densities``."""
        return any(value == EACH for call in self.calls for _, value in call.arguments)

    @property
    def statistics(self) -> bool:
        """Whether a step needs statistics of inputs, so that `run` needs ``stats``."""
        return any(call.step.statistics for call in self.calls)

    @property
    def model(self) -> bool:
        """Whether a step runs the base model, so that `run` needs a ``sample``."""
        return any(call.step.kind == "model merger" for call in self.calls)

    @property
    def learned(self) -> bool:
        """Whether it has coefficients to learn, so that `run` needs ``phis``."""
        return any(call.step.kind == "learned merger" for call in self.calls)

    @property
    def own_steps(self) -> dict[str, Any]:
        """Steps that are not of jaxmerge: name -> what records say of them."""
        steps = {call.name: call.step.own for call in self.calls}
        return {name: dict(own) for name, own in steps.items() if own is not None}

    @property
    def needs(self) -> tuple[Option, ...]:
        """Options that `jaxmerge.merge`, or `jaxmerge.learn`, has to be given with it.

        >>> print(*parse("elect|dare(density=0.5)|full").needs)
        seed=0 dense='full'
        """
        found: list[Option] = []
        found += [Option("seed", "0")] if self.random else []
        if self.each:
            found.append(Option("densities", "<number>,<number>"))
        if self.statistics:
            found.append(Option("stats", "STATS"))
        if self.model or self.learned:
            found += [Option("base", "BASE"), Option("data", "DATA")]
        if self.dense:
            found.append(Option("dense", "full", quoted=True))
        return tuple(found)

    @property
    def whole(self) -> bool:
        """Whether a step needs all modules at once."""
        whole = ("whole-model transform", "model merger")
        return any(call.step.kind in whole for call in self.calls)

    @property
    def linear(self) -> bool:
        """Whether the merged update is a weighted sum of the adapters' updates.

        Steps that drop entries at random count as linear: in the mean they are.
        """
        return all(call.step.linear for call in self.calls)

    @property
    def dense(self) -> bool:
        """Whether merged updates are dense: made in full space, and not truncated."""
        told = [c.step.dense for c in self.calls if c.step.dense is not None]
        return bool(told) and told[-1]

    @property
    def flat(self) -> bool:
        """Whether a step makes all singular values of the merged update equal."""
        return any(call.step.flat for call in self.calls)

    @property
    def scale(self) -> float:
        """The product of all ``scale(..)`` steps."""
        return math.prod(factor_of(call) for call in self.calls if call.step.multiplies)

    def learnable(self) -> "Learned":
        """The learned merger and what surrounds it, as `jaxmerge.fit` takes it.

        Raises:
          PipelineError: it has no coefficients to learn.
        """
        if not self.learned:
            raise PipelineError(
                f"pipeline {self.text!r} has no coefficients to learn; begin with "
                f"{' or '.join(names_of('learned merger'))}"
            )
        from jaxmerge.spec.build import learned_merger

        return learned_merger(self.calls)

    @property
    def published(self) -> "Published":
        """How the source of the learned merger fits it."""
        (found,) = (c.step.published for c in self.calls if c.step.published)
        return found

    def run(
        self,
        stacks: "Mapping[str, AdapterStack]",
        *,
        weights: "PerModule | None" = None,
        densities: "PerModule | None" = None,
        key: "jax.Array | None" = None,
        stats: "Mapping[str, Statistics] | LoadsStatistics | None" = None,
        sample: "ModelSample | None" = None,
        phis: "Mapping[str, Any] | None" = None,
        chunk: int | None = None,
        memory: int | None = None,
        mesh: "Mesh | None" = None,
        gather: bool = False,
        report: Callable[[int], None] | None = None,
    ) -> "dict[str, Update]":
        """Merges the adapters of a whole model.

        A pipeline is built once in a process and compiled once for each shape of
        modules; pipelines that differ in their last scale only share their programs.
        Modules of one shape are merged together, where they do not depend on others,
        so that no more than 1 GiB of dense updates or of statistics is in memory.

        Args:
          stacks: module -> its T adapters. Where they are
            `jaxmerge.streamed.Streamed`, so are the updates: adapters are read and
            merged when an update is asked for, unless a step runs the model.
          weights: [T], multiply the updates; ones unless given. A number may be a
            setting that varies over modules (`jaxmerge.module_values`); a table or a
            function from modules to [T] will do too.
          densities: [T], in the same ways; needed if `each`, refused otherwise.
          key: needed if `random`, not used otherwise.
          stats: module -> statistics of the inputs of all tasks, stacked
            (`jaxmerge.stack_moments`), or what loads them for some modules
            (`jaxmerge.io.open_statistics`); needed if `statistics`, refused otherwise.
          sample: `jaxmerge.ModelSample`; needed if `model`, refused otherwise.
          phis: module -> learned coefficients; needed if `learned`, refused otherwise.
          chunk: modules of one shape worked on at a time, see `jaxmerge.map_modules`.
          memory: bytes that streamed adapters may take with what is computed from them
            (`jaxmerge.spec.memory.bounded`); as few as possible unless given.
          mesh: devices, see `jaxmerge.map_modules`.
          gather: bring the updates to the first device; in several processes always.
          report: called with the number of modules that are done.

        Returns:
          module -> merged update, in the order of ``stacks``.

        Raises:
          PipelineError: no key for a random pipeline; weights that are not T finite
            numbers; mixed ranks where a step needs equal ones; no statistics where a
            step needs them, those of other modules, tasks or inputs, or some that
            nothing would read; the same for a sample and for coefficients; a merge
            that is not finite.

        >>> import jaxmerge as jm
        >>> stack = jm.stack_adapters([([[1.0]], [[2.0]]), ([[3.0]], [[1.0]])])
        >>> merged = jm.parse("concat|scale(0.5)").run({"q_proj": stack})
        >>> print(jm.dense(merged["q_proj"]))
        [[2.5]]
        """
        from jaxmerge.spec.execution import run

        return run(
            self,
            stacks,
            weights=weights,
            densities=densities,
            key=key,
            stats=stats,
            sample=sample,
            phis=phis,
            chunk=chunk,
            memory=memory,
            mesh=mesh,
            gather=gather,
            report=report,
        )

    def merge_biases(
        self,
        biases: "Mapping[str, jax.Array]",
        stacks: "Mapping[str, AdapterStack]",
        *,
        weights: "PerModule | None" = None,
    ) -> "dict[str, jax.Array]":
        """Merges the biases that some LoRA layers have beside their update.

        A linear pipeline combines them as it combines the updates. Any other one takes
        their mean over the tasks that adapt the module, as the official codes of TSV-M
        and Iso-C do with all vectors. Weights and scales apply in both cases.

        Args:
          biases: module -> [T, m], zero where a task has none.
          stacks: module -> its T adapters.
          weights: as in `run`.

        Returns:
          module -> [m].
        """
        from jaxmerge.spec.biases import merged_biases

        return merged_biases(self, biases, stacks, weights)


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


def factor_of(call: Call) -> float:
    """By what a step that only multiplies does so."""
    return dict(call.arguments)[call.step.multiplies]
