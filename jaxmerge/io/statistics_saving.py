"""Writes folders of statistics of inputs, task by task."""

import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from jaxmerge.folders import Folder
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.files import sha256
from jaxmerge.io.replaceable import (
    STATISTICS,
    STATISTICS_FILE,
    STATISTICS_FORMAT,
    statistics_file,
)
from jaxmerge.io.staging import folder_of_one
from jaxmerge.io.statistics import save_moments
from jaxmerge.io.statistics_folder import (
    StatisticsFolder,
    check_task_name,
    open_statistics,
)
from jaxmerge.processes import fetched, of_first, together
from jaxmerge.stats.moments import Statistics

OfTask = tuple[str, Mapping[str, Statistics]]


@together()
def save_statistics(
    out: Folder,
    tasks: Mapping[str, Mapping[str, Statistics]] | Iterable[OfTask],
    *,
    measured: Mapping[str, Any] | None = None,
    force: bool = False,
    inputs: Sequence[Folder] = (),
) -> StatisticsFolder:
    """Writes a folder of statistics, whole or not at all.

    Args:
      out: folder to create.
      tasks: name -> (module -> `Moments` or `Sketch` of its inputs), or such pairs one
        after the other, each of which is written before the next one is asked for.
      measured: what is known of them, as JSON values: ``base_model``, the name of the
        base, and ``adapters``, name -> ``sha256`` of its files and ``scales`` of its
        modules, are checked when adapters are merged with them.
      force: replace a folder of statistics that holds nothing else.
      inputs: files and folders that must survive.

    Returns:
      The folder, opened.

    Raises:
      AdapterError: tasks without the same modules and kinds of statistics, a name that
        cannot be that of a file, or a folder that cannot be written.
    """
    out = Path(out)
    given = tasks.items() if isinstance(tasks, Mapping) else tasks
    pairs = cast(Iterable[OfTask], given)  # a mapping is an iterable too
    shapes: dict[str, Any] | None = None
    files: dict[str, dict[str, Any]] = {}
    with folder_of_one(out, force=force, inputs=inputs, kind=STATISTICS) as folder:
        for task, statistics in pairs:
            check_task_name(task, out)
            digest = of_first(partial(_save, folder, task, fetched(statistics)))
            found = _shapes(task, statistics)
            if shapes not in (None, found):
                raise AdapterError(
                    f"{out}: task {task!r} has other modules or kinds of statistics "
                    "than the tasks before it; collect the same for all"
                )
            shapes = found
            tokens = int(max(value.count for value in statistics.values()))
            files[task] = {"tokens": tokens, "sha256": digest}
        if shapes is None:
            raise AdapterError(f"{out}: no task to write")
        record = {
            "format": STATISTICS_FORMAT,
            "versions": {
                name: importlib.metadata.version(name) for name in ("jaxmerge", "jax")
            },
            "modules": {m: list(shape) for m, (_, shape) in sorted(shapes.items())},
            "tasks": files,
            "measured": dict(measured or {}),
        }
        if folder is not None:
            text = json.dumps(record, indent=2) + "\n"
            (folder / STATISTICS_FILE).write_text(text, encoding="utf-8")
    return of_first(lambda: open_statistics(out))


def _save(folder: Path | None, task: str, statistics: Mapping[str, Statistics]) -> str:
    """Writes the file of a task; gives its SHA-256."""
    assert folder is not None  # it is asked of the process that writes
    path = folder / statistics_file(task)
    save_moments(path, statistics)
    return sha256(path)


def _shapes(task: str, statistics: Mapping[str, Statistics]) -> dict[str, Any]:
    """Module -> kind and shape of the Gram matrix or of the rows that stand for it."""
    if not statistics or any(value.mean.ndim != 1 for value in statistics.values()):
        raise AdapterError(
            f"task {task!r}: expected statistics of some modules, of this task alone"
        )
    return {m: (type(value), value[2].shape) for m, value in statistics.items()}
