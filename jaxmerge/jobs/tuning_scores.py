"""From points of a search to their scores: through the base model, or by a command."""

import math
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmerge.io import Adapters
from jaxmerge.jobs.merge_recipe import MergeRecipe
from jaxmerge.refusals import Option, Refusal
from jaxmerge.spec import Pipeline, PipelineError, parse
from jaxmerge.spec.varied import density_apart, without_scale
from jaxmerge.tuning.families import Point
from jaxmerge.tuning.measures import Measure
from jaxmerge.tuning.progression import Evaluate
from jaxmerge.tuning.trace import Row, Scored
from jaxmerge.types import LowRank, Update

MERGED = "{merged}"  # stands for a folder in a command
_SHOWN = 500  # characters of what a command said

Recipe = Callable[[Point, int | None], MergeRecipe]


def model_scores(
    recipe: Recipe,
    adapters: Adapters,
    measure: Measure,
    shares: Mapping[str, float],
    seeds: tuple[int, ...],
    *,
    masked: bool,
) -> Evaluate:
    """Scores merges by a measure of the model that carries them.

    Points that differ in their last scale alone share a merge, and go through the model
    in one compiled call; those that differ in a density share the program of the merge.

    Args:
      recipe: gives the recipe of a point and a seed.
      adapters: what is merged.
      measure: see `jaxmerge.tuning.measures`.
      shares: weight of each task in the score, of sum 1.
      seeds: of merges that draw at random.
      masked: whether points leave adapters out: updates then get one shape for all.
    """

    @lru_cache(maxsize=len(seeds))  # the last merge, with every seed
    def merged(point: Point, seed: int | None) -> dict[str, Update]:
        asked = recipe(point, seed)
        pipeline, density = density_apart(asked.pipeline)
        if density is not None:  # so that densities share a program
            densities = (density,) * len(adapters.names)
            asked = replace(asked, pipeline=pipeline, densities=densities)
        updates, _ = asked.run(adapters)
        return _of_one_shape(updates, adapters) if masked else updates

    def scored(values: Sequence[Mapping[str, float]]) -> Scored:
        each = [math.fsum(shares[t] * x for t, x in v.items()) for v in values]
        tasks = {t: float(np.mean([v[t] for v in values])) for t in values[0]}
        return _over_seeds(each, tasks)

    def evaluate(points: Sequence[Point]) -> Iterator[Row]:
        for inside, group in groupby(points, key=_without_scale):
            some, clock = list(group), time.perf_counter()
            factors = [without_scale(parse(point.pipeline))[1] for point in some]
            try:
                found = [
                    measure(merged(inside, seed), factors)
                    for seed in _seeds(parse(inside.pipeline), seeds)
                ]
                each = [scored(values) for values in zip(*found, strict=True)]
            except PipelineError as error:  # the merge is not finite
                each = [Scored(None, error=str(error))] * len(some)
            seconds = (time.perf_counter() - clock) / len(some)
            for point, one in zip(some, each, strict=True):
                yield Row(point, one._replace(seconds=seconds))

    return evaluate


def _without_scale(point: Point) -> Point:
    """A point without its last scales."""
    inside, _ = without_scale(parse(point.pipeline))
    return point._replace(pipeline=inside.text)


def _seeds(pipeline: Pipeline, seeds: tuple[int, ...]) -> Sequence[int | None]:
    return seeds if pipeline.random else (None,)


def _over_seeds(each: Sequence[float], tasks: Mapping[str, float]) -> Scored:
    if not np.isfinite(each).all():
        return Scored(None, error="the score is not finite")
    spread = float(np.std(each, ddof=1)) if len(each) > 1 else None
    return Scored(float(np.mean(each)), spread, tasks)


def _of_one_shape(
    updates: Mapping[str, Update], adapters: Adapters
) -> dict[str, Update]:
    """Updates of every module, of as many directions as all adapters have.

    So that masks, which change ranks, share the program of the model.
    """
    found: dict[str, Update] = {}
    for module, stack in adapters.stacks.items():
        m, n, most = stack.b.shape[1], stack.a.shape[2], sum(stack.ranks)
        dtype = stack.b.dtype
        nothing = LowRank(jnp.zeros((m, 0), dtype), jnp.zeros((0, n), dtype))
        update = updates.get(module, nothing)
        if isinstance(update, LowRank):
            more = max(most - update.b.shape[1], 0)
            b = jnp.pad(update.b, ((0, 0), (0, more)))
            update = LowRank(b, jnp.pad(update.a, ((0, more), (0, 0))))
        found[module] = update
    return found


def command_scores(
    command: str,
    write: Callable[[Point, int | None, Path], Any],
    folder: Path,
    seeds: tuple[int, ...],
) -> Evaluate:
    """Scores merges by a shell command that prints a number.

    Args:
      command: in which `MERGED` stands for the merged folder.
      write: writes the merge of a point and a seed into a folder.
      folder: where it is written, anew for every merge.
      seeds: of merges that draw at random.
    """

    def evaluate(points: Sequence[Point]) -> Iterator[Row]:
        for point in points:
            clock, each = time.perf_counter(), list[float]()
            for seed in _seeds(parse(point.pipeline), seeds):
                write(point, seed, folder)
                each.append(run_command(command, folder))
            scored = _over_seeds(each, {})
            yield Row(point, scored._replace(seconds=time.perf_counter() - clock))

    return evaluate


def check_command(command: str) -> None:
    """Refuses a command that would not know the merged folder."""
    if MERGED not in command:
        raise Refusal(
            Option("command", command, quoted=True),
            f": write {MERGED} where it is to have the path of the merged folder",
        )


def run_command(command: str, folder: Path) -> float:
    """The number in the last line that a shell command prints.

    Args:
      command: in which `MERGED` stands for the folder.
      folder: of a merge.

    Raises:
      Refusal: the command fails, or its last line is no number.

    >>> run_command("echo reading {merged}; echo 0.5", Path("runs"))
    0.5
    """
    said = subprocess.run(
        command.replace(MERGED, shlex.quote(str(folder))),
        shell=True,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if said.returncode != 0:
        last = said.stderr.strip()[-_SHOWN:] or said.stdout.strip()[-_SHOWN:]
        raise Refusal(
            Option("command", command, quoted=True),
            f" ended with exit code {said.returncode}: {last}",
        )
    lines = said.stdout.strip().splitlines()
    try:
        return float(lines[-1])
    except (IndexError, ValueError):
        last = lines[-1][-_SHOWN:] if lines else ""
        raise Refusal(
            Option("command", command, quoted=True),
            f": expected a number in the last line that it prints, found {last!r}",
        ) from None
