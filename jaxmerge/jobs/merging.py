"""Adapter folders in, one adapter folder out."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from jaxmerge.io.options import TaskType
from jaxmerge.jobs.merge_recipe import MergeRecipe
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import (
    Folder,
    ReadOptions,
    paths_of,
    read_adapters,
    refusing_bad_input,
)
from jaxmerge.processes import of_first, together
from jaxmerge.refusals import Option, Refusal
from jaxmerge.spec import Pipeline, parse
from jaxmerge.spec.checks import check_count
from jaxmerge.spec.layerwise import PerModule, as_given

if TYPE_CHECKING:
    from jaxmerge.io import SaveReport

Dense = Literal["error", "truncate", "full"]
Rank = int | Literal["auto"] | None


@dataclass(frozen=True)
class Merged:
    """A merge that was written.

    Attributes:
      recipe: how the adapters were merged.
      adapters: their names.
      saved: what was written, and what writing lost.
      seconds: time of the whole job.
      size: bytes of the files that were written.
      notes: what a reader should know.
    """

    recipe: MergeRecipe
    adapters: tuple[str, ...]
    saved: "SaveReport"
    seconds: float
    size: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "recipe": self.recipe.to_record(),
            "adapters": list(self.adapters),
            "seconds": round(self.seconds, 3),
            "bytes": self.size,
            "notes": list(self.notes),
            **self.saved.to_json(),
        }


@together()
def merge(
    folders: Sequence[Folder],
    pipeline: str | Pipeline,
    *,
    out: Folder,
    weights: PerModule | None = None,
    densities: PerModule | None = None,
    leave_out: Sequence[str] = (),
    seed: int | None = None,
    stats: Folder | None = None,
    names: Sequence[str] | None = None,
    base: Folder | None = None,
    data: Folder | None = None,
    limit: int | None = None,
    batch: int | None = None,
    max_length: int | None = None,
    task_type: TaskType | None = None,
    rank: Rank = None,
    energy: float | None = None,
    ragged: bool = False,
    dense: Dense = "error",
    dtype: str | None = None,
    chunk: int | None = None,
    memory: int | None = None,
    force: bool = False,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Merged:
    """Merges PEFT adapters into one PEFT adapter.

    Neither torch nor the base model is needed; methods that use inputs take them from
    statistics, only iteris runs the base. The folder appears complete or not at all.
    Modules are spread over all accelerators, those of other processes included.

    Args:
      folders: PEFT adapter folders.
      pipeline: steps such as ``"elect|trim(density=0.2)|core|scale(0.3)"``, or the name
        of a method (`jaxmerge.spec.PRESETS`).
      out: folder to create.
      weights: a weight for each adapter. In the place of a number numbers over the
        layers, ``[0.2, 0.8]``, or conditions on names of modules
        (`jaxmerge.module_values`); or a function or a table from modules to weights.
      densities: a density for each adapter, in the same ways, for a pipeline with
        ``density=each``.
      leave_out: adapters that take no part in a block of the model: ``task@block``,
        a block being what the names of its modules begin with.
      seed: for steps that draw at random.
      stats: folder of `jaxmerge.collect`, for steps that need it.
      names: names of the tasks; by default those of the folders.
      base: for iteris: Hugging Face folder of the base.
      data: for iteris: folder with inputs of every task, as for `jaxmerge.learn`.
      limit: for iteris: largest number of inputs of each task.
      batch: for iteris: number of inputs in the model at a time; by default 16.
      max_length: for iteris: number of tokens to which texts are truncated.
      task_type: for iteris: what the adapters are of, see `jaxmerge.learn`.
      rank: see `jaxmerge.io.save_peft`, and so ``energy``, ``ragged``, ``dense``,
        ``dtype`` and ``force``.
      chunk: number of modules of one shape that are merged at a time.
      memory: bytes that the adapters which are worked on at a time may take, with what
        is computed from them (`jaxmerge.spec.memory.bounded`); on a CPU that is one
        module, whatever the bound. Every bound gives the same bits there.
      progress: shows how far the job is.
      **read: see `jaxmerge.io.load_peft`.

    Returns:
      `Merged`.

    Raises:
      Refusal: what cannot be merged exactly as asked for; says what to do instead.
    """
    from jaxmerge import io
    from jaxmerge.spread import mesh_of_jobs

    clock, out = time.perf_counter(), Path(out)
    recipe = merge_recipe(
        *(folders, pipeline),
        weights=weights,
        densities=densities,
        leave_out=leave_out,
        seed=seed,
        stats=stats,
    )
    inputs = paths_of(*folders, stats, base, data)
    check_before(
        *(recipe, out),
        force=force,
        inputs=inputs,
        base=base,
        data=data,
        rank=rank,
        energy=energy,
        dense=dense,
    )
    of_model = {limit, batch, max_length, task_type}
    if not recipe.pipeline.model and of_model != {None}:
        raise Refusal(
            *(Option("limit"), ", ", Option("batch"), ", ", Option("max_length")),
            *(" and ", Option("task_type")),
            " are for pipelines that run the model",
        )
    with progress("reading", 1) as advance:
        adapters = read_adapters(folders, names, read, stream=True)
        with refusing_bad_input():
            recipe = recipe.bound(
                adapters,
                base=base,
                data=data,
                batch=batch or 16,
                limit=limit,
                max_length=max_length,
                task_type=task_type,
            )
        advance(1)
    with _Merging(progress, len(adapters.stacks) * (1 if energy is None else 2)) as at:
        updates, biases = recipe.run(
            adapters,
            chunk=chunk,
            memory=memory,
            mesh=mesh_of_jobs("modules"),
            advance=at.advance,
        )
        saved = io.save_peft(
            out,
            updates,
            like=adapters,
            biases=biases,
            card=recipe.to_record(),
            rank=rank,
            energy=energy,
            ragged=ragged,
            dense=dense,
            dtype=dtype,
            force=force,
            inputs=inputs,
        )
    return Merged(
        recipe=recipe,
        adapters=adapters.names,
        saved=saved,
        seconds=time.perf_counter() - clock,
        size=size_of(out, saved.files),
        notes=(*adapters.notes, *_notes(recipe, saved)),
    )


class _Merging(ExitStack):
    """Tells that modules are merged, and when all are, that they are read back.

    Modules are written as they are merged.
    """

    def __init__(self, progress: Progress, modules: int):
        super().__init__()
        self._progress, self._left = progress, modules
        self._advance = self.enter_context(progress("merging modules", modules))

    def advance(self, modules: int) -> None:
        """Some modules are merged."""
        self._advance(modules)
        self._left -= modules
        if self._left == 0:
            self.close()
            self.enter_context(self._progress("writing and reading back", 1))


def merge_recipe(
    folders: Sequence[Folder],
    pipeline: str | Pipeline,
    *,
    weights: PerModule | None = None,
    densities: PerModule | None = None,
    leave_out: Sequence[str] = (),
    seed: int | None = None,
    stats: Folder | None = None,
) -> MergeRecipe:
    """The recipe of a merge, checked as far as nothing has been read."""
    from jaxmerge.io import open_statistics

    recipe = MergeRecipe(
        parse(pipeline) if isinstance(pipeline, str) else pipeline,
        as_given(weights, "weights"),
        as_given(densities, "densities"),
        seed,
        None if stats is None else open_statistics(stats),
        left_out=tuple(leave_out),
    )
    for name in ("weights", "densities"):
        check_count(getattr(recipe, name), len(folders), name)
    return recipe


def check_before(
    recipe: MergeRecipe,
    out: Folder,
    *,
    force: bool,
    inputs: Sequence[Folder],
    base: Folder | None,
    data: Folder | None,
    rank: Rank,
    energy: float | None,
    dense: Dense,
) -> None:
    """Refuses, before any work, what would only be refused when the result is written.

    Raises:
      Refusal: a folder that may not be replaced, a model that nothing runs, ranks and
        energies that do not go together, or a dense result without a word on what
        becomes of it.
    """
    from jaxmerge.io.staging import check_target

    recipe.check_model(base, data)
    check_target(out, force=force, inputs=inputs)
    if rank is not None and energy is not None:
        raise Refusal(
            *(Option("rank"), " and ", Option("energy")),
            " both decide the rank; give one of them",
        )
    if energy is not None and not 0 < energy <= 1:
        raise Refusal(Option("energy", str(energy)), ": expected a share in (0, 1]")
    truncated = rank is not None or energy is not None
    if recipe.pipeline.dense and dense == "error":
        raise Refusal(
            "in full space the result is dense; give ",
            *(Option("dense", "truncate", quoted=True), " with ", Option("rank")),
            *(" or ", Option("energy"), ", ", Option("dense", "full", quoted=True)),
            " for weight deltas, or choose core or knots space",
        )
    if recipe.pipeline.dense and dense == "truncate" and not truncated:
        raise Refusal(
            *(Option("dense", "truncate", quoted=True), " needs "),
            *(Option("rank", "<number>"), ", ", Option("rank", "auto", quoted=True)),
            *(" or ", Option("energy", "<share>")),
        )


def size_of(folder: Path, files: Iterable[str]) -> int:
    """Bytes of some files of a folder."""
    return of_first(lambda: sum((folder / name).stat().st_size for name in files))


def _notes(recipe: MergeRecipe, saved: "SaveReport") -> Iterator[str]:
    statistics = recipe.statistics
    if statistics is not None and statistics.measured.get("inputs_of") == "pretrained":
        yield (
            "the inputs were measured in the pretrained base; RegMean and SSR take "
            "them with each task's own adapter"
        )
    lossy = any(share < 1 for share in saved.energy.values())
    if lossy and recipe.pipeline.flat:
        yield (
            "the merge has a flat spectrum, so which of its directions are kept is "
            "arbitrary and may differ between machines; better leave the rank as it is"
        )
