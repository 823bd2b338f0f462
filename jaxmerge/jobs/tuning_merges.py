"""The merges of a search: checked before any work, made in memory, and written."""

import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxmerge.folders import Folder
from jaxmerge.io import Adapters
from jaxmerge.io.staging import check_target
from jaxmerge.jobs.merge_recipe import MergeRecipe
from jaxmerge.jobs.merging import Merged, merge, merge_recipe
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import ReadOptions
from jaxmerge.jobs.tuning_space import SearchSpace
from jaxmerge.learning.work import check_apart
from jaxmerge.refusals import Option, Refusal
from jaxmerge.spec import Pipeline, parse
from jaxmerge.tuning.families import Point

_CANDIDATE = "candidate"  # folder of the merge that a command is given


@dataclass(frozen=True)
class Merges:
    """What the merges of a search share.

    Attributes:
      folders: of the adapters.
      stats: folder of statistics; only pipelines that need it are given it.
      names: of the tasks, None for those of the folders.
      dense: what becomes of dense results, see `jaxmerge.merge`.
      dtype: of the output.
      read: options of reading.
    """

    folders: Sequence[Folder]
    stats: Folder | None
    names: Sequence[str] | None
    dense: Literal["error", "full"]
    dtype: str | None
    read: ReadOptions

    def check(
        self,
        space: SearchSpace,
        *,
        seed: int,
        writes: bool,
        out: Path | None,
        work: Path | None,
        force: bool,
        inputs: Sequence[Folder],
    ) -> None:
        """Refuses, before any work, what could not be merged or written in the end."""
        for varied in space.pipelines:
            pipeline = space.middle(varied)
            if pipeline.model:
                raise Refusal(
                    f"pipeline {pipeline.text!r} runs the model in every round, which "
                    "is not searched; choose another"
                )
            merge_recipe(self.folders, pipeline, **self._given(pipeline, seed))
            if writes and pipeline.dense and self.dense == "error":
                raise Refusal(
                    f"the merge of {pipeline.text!r} is dense; let it end with "
                    "truncate(rank=..), or give ",
                    *(Option("dense", "full", quoted=True), " for weight deltas"),
                )
        if out is not None:
            check_target(out, force=force, inputs=inputs)
            if work is not None:
                check_apart(work, out)

    def recipe(self, adapters: Adapters, point: Point, seed: int | None) -> MergeRecipe:
        """How the merge of a point is made of the adapters."""
        pipeline = parse(point.pipeline)
        made = merge_recipe(
            *(self.folders, pipeline),
            weights=point.weights,
            leave_out=point.left_out,
            **self._given(pipeline, seed),
        )
        return made.for_tasks(adapters.names)

    def write(
        self,
        point: Point,
        seed: int | None,
        out: Path,
        *,
        force: bool,
        progress: Progress = silent,
    ) -> Merged:
        """Writes the merge of a point, as `jaxmerge.merge` does."""
        return merge(
            *(self.folders, point.pipeline),
            out=out,
            weights=point.weights,
            leave_out=point.left_out,
            **self._given(parse(point.pipeline), seed),
            names=self.names,
            dense=self.dense,
            dtype=self.dtype,
            force=force,
            progress=progress,
            **self.read,
        )

    def _given(self, pipeline: Pipeline, seed: int | None) -> dict[str, Any]:
        stats = self.stats if pipeline.statistics else None
        return {"seed": seed if pipeline.random else None, "stats": stats}


@contextmanager
def candidate_folder(work: Path | None) -> Generator[Path, None, None]:
    """Where the merges that a command scores are written, one after the other."""
    if work is None:
        with tempfile.TemporaryDirectory() as place:
            yield Path(place) / _CANDIDATE
        return
    try:
        yield work / _CANDIDATE
    finally:
        shutil.rmtree(work / _CANDIDATE, ignore_errors=True)
