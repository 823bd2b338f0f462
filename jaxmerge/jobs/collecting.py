"""Statistics of the inputs of layers, for merges with them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from jaxmerge.io.options import TaskType
from jaxmerge.jobs.merging import size_of
from jaxmerge.jobs.progress import Advance, Progress, silent
from jaxmerge.jobs.reading import (
    Folder,
    ReadOptions,
    different_names,
    paths_of,
    refusing_bad_input,
    task_names,
)
from jaxmerge.processes import together
from jaxmerge.refusals import Option, Refusal

if TYPE_CHECKING:
    from jaxmerge.io import Adapters, StatisticsFolder
    from jaxmerge.tasks import Base, Unlabeled


@dataclass(frozen=True)
class Collected:
    """Statistics that were written.

    Attributes:
      written: the folder.
      sketch: number of rows that were kept of each module; None for n x n numbers.
      seconds: time of the whole job.
      size: bytes of the files that were written.
      notes: what a reader should know.
    """

    written: "StatisticsFolder"
    sketch: int | None
    seconds: float
    size: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "path": str(self.written.path),
            **self.written.record,
            "sketch": self.sketch,
            "seconds": round(self.seconds, 3),
            "bytes": self.size,
            "notes": list(self.notes),
        }


class ToMeasure(NamedTuple):
    """What is to be measured, read and checked against each other.

    Attributes:
      adapters: None where the layers were named instead.
      files: digests of base and data.
      base: the model.
      unlabeled: inputs of every task.
      modules: names of the layers.
    """

    adapters: "Adapters | None"
    files: dict[str, Any]
    base: "Base"
    unlabeled: "Unlabeled"
    modules: list[str]


@together()
def collect(
    folders: Sequence[Folder] = (),
    *,
    base: Folder,
    data: Folder,
    out: Folder,
    names: Sequence[str] | None = None,
    modules: Sequence[str] | None = None,
    adapted: bool | None = None,
    limit: int | None = None,
    batch: int = 16,
    max_length: int | None = None,
    task_type: TaskType | None = None,
    sketch: int | None = None,
    force: bool = False,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Collected:
    """Measures the inputs of the layers that adapters change, on unlabeled data.

    Writes one file for each task into a folder that `jaxmerge.merge` takes as
    ``stats``. The folder appears complete or not at all.

    Args:
      folders: PEFT adapter folders; none where ``modules`` names the layers.
      base: Hugging Face folder of the base model.
      data: folder with the inputs of each task, see `jaxmerge.tasks.load_unlabeled`.
      out: folder of statistics to create.
      names: names of the tasks; by default those of the folders.
      modules: without adapters: ends of the names of the layers, as in PEFT's
        target_modules.
      adapted: inputs in the model with the task's own adapter, as RegMean and SSR take
        them, or in the base as it is, as OSRM does; adapted unless there are no
        adapters.
      limit: number of inputs of each task, taken at even distances; by default all.
      batch: number of inputs that go through the model at a time.
      max_length: number of tokens to which texts are truncated.
      task_type: what the adapters are of, see `jaxmerge.learn`.
      sketch: number of rows to keep of each layer and task instead of n x n numbers.
      force: replace the folder if it holds statistics alone.
      progress: shows how far the job is.
      **read: see `jaxmerge.io.load_peft`.

    Returns:
      `Collected`.

    Raises:
      Refusal: what cannot be measured as asked for; says what to do instead.
    """
    from jaxmerge import io
    from jaxmerge.io.replaceable import STATISTICS
    from jaxmerge.io.staging import check_target

    clock, inputs = time.perf_counter(), paths_of(*folders, base, data)
    check_target(out, force=force, inputs=inputs, kind=STATISTICS)
    adapted = bool(folders) if adapted is None else adapted
    _check_what(folders, modules, names, adapted=adapted)
    with progress("reading", 3) as advance, refusing_bad_input():
        found = _read(
            folders,
            {"heads": "keep", **read},
            base,
            data,
            names=names,
            modules=modules,
            task_type=task_type,
            limits={"max_length": max_length, "limit": limit},
            advance=advance,
        )
    unlabeled = found.unlabeled
    total = sum(unlabeled.count(task) for task in unlabeled.inputs)
    with progress("measuring inputs", total) as advance, refusing_bad_input():
        from jaxmerge.tasks import measure

        tasks = measure(
            *(found.base, unlabeled, found.modules),
            adapters=found.adapters if adapted else None,
            batch=batch,
            sketch=sketch,
            report=lambda task, count: advance(count, title=task),
        )
        record = _record(found, adapted=adapted)
        written = io.save_statistics(
            out, tasks, measured=record, force=force, inputs=inputs
        )
    read_notes = () if found.adapters is None else found.adapters.notes
    return Collected(
        written=written,
        sketch=sketch,
        seconds=time.perf_counter() - clock,
        size=size_of(written.path, written.sha256),
        notes=(*read_notes, *unlabeled.notes, *_notes(written, sketch)),
    )


def _check_what(
    folders: Sequence[Folder],
    modules: Sequence[str] | None,
    names: Sequence[str] | None,
    *,
    adapted: bool,
) -> None:
    """Adapters say what is measured; without them the options have to."""
    if folders and modules is not None:
        raise Refusal(
            Option("modules"), " is for no adapters: they name their own modules"
        )
    if folders:
        return
    if modules is None or names is None:
        raise Refusal(
            "give adapters, or for the base alone ",
            *(Option("modules", "q_proj,v_proj"), " ", Option("names", "cars,dtd")),
            ": layers and tasks",
        )
    if adapted:
        raise Refusal(
            Option("adapted"), " needs adapters; leave it out for the base alone"
        )


def _read(
    folders: Sequence[Folder],
    read: ReadOptions,
    base: Folder,
    data: Folder,
    *,
    names: Sequence[str] | None,
    modules: Sequence[str] | None,
    task_type: TaskType | None,
    limits: dict[str, int | None],
    advance: Advance,
) -> ToMeasure:
    from jaxmerge import io
    from jaxmerge.tasks import load_base, load_unlabeled, modules_ending
    from jaxmerge.tasks.base_layers import check_layers
    from jaxmerge.tasks.record import digests, steady
    from jaxmerge.tasks.task_types import task_type_of

    adapters = io.load_peft(folders, **read) if folders else None
    if adapters is None:
        tasks = different_names(names or ())
    else:
        tasks = task_names(names, adapters.names)
        adapters = replace(adapters, names=tasks)
    advance(1)
    kind = task_type_of(adapters, task_type)
    with steady(base, data, tasks, task_type=kind) as groups:
        files = digests(groups)
        model = load_base(base, kind)
        advance(1)
        unlabeled = load_unlabeled(data, tasks, model, **limits)
        advance(1)
    if adapters is None:
        layers = modules_ending(model, unlabeled, modules or ())
    else:
        check_layers(model, adapters, unlabeled.inputs[tasks[0]])
        layers = list(adapters.stacks)
    return ToMeasure(adapters, files, model, unlabeled, layers)


def _record(found: ToMeasure, *, adapted: bool) -> dict[str, Any]:
    """What was measured, for the record; a merge compares its adapters with it."""
    adapters, unlabeled = found.adapters, found.unlabeled
    bases = [] if adapters is None else [s.base_model for s in adapters.sources]
    record: dict[str, Any] = {
        "inputs_of": "adapted" if adapted else "pretrained",
        "base_model": next((name for name in bases if name is not None), None),
        "inputs": {task: unlabeled.count(task) for task in unlabeled.inputs},
        "max_length": unlabeled.max_length,
        "files": found.files,
    }
    if adapted and adapters is not None:
        record["adapters"] = {
            name: {
                "path": source.path,
                "sha256": dict(source.sha256),
                "scales": dict(source.scales),
            }
            for name, source in zip(adapters.names, adapters.sources, strict=True)
        }
    return record


def _notes(written: "StatisticsFolder", sketch: int | None) -> Iterator[str]:
    """A note for every task that has fewer tokens than directions."""
    widest = max(written.widths().values())
    for task, found in written.record["tasks"].items():
        if found["tokens"] < widest and sketch is None:
            yield (
                f"{task} has {found['tokens']} tokens for up to {widest} input "
                "features; directions without any input are merged as by the mean, "
                "more inputs or a ridge make the rest steadier"
            )
