"""A folder of statistics of inputs: a file for each task, and what was measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jaxmerge.folders import Folder
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.files import checked_file, json_of, sha256
from jaxmerge.io.replaceable import (
    STATISTICS_FILE,
    STATISTICS_FORMAT,
    statistics_file,
)
from jaxmerge.refusals import Option
from jaxmerge.streamed import described
from jaxmerge.untrusted.text import is_plain

if TYPE_CHECKING:  # a record is read and checked without JAX
    from jaxmerge.io.adapters import Adapters, Source
    from jaxmerge.stats.moments import Statistics


@dataclass(frozen=True)
class StatisticsFolder:
    """Statistics of the inputs of some tasks, as they lie in a folder.

    Attributes:
      path: the folder.
      tasks: their names, in the order in which `load` stacks them.
      record: what ``statistics.json`` says.
      record_sha256: SHA-256 of ``statistics.json``.
    """

    path: Path
    tasks: tuple[str, ...]
    record: Mapping[str, Any]
    record_sha256: str

    @property
    def measured(self) -> Mapping[str, Any]:
        """What was measured, and on which inputs, as far as it was recorded."""
        return self.record["measured"]

    @property
    def sha256(self) -> dict[str, str]:
        """Name of each file that `load` reads, and of the record -> its SHA-256."""
        files = {STATISTICS_FILE: self.record_sha256}
        for task in self.tasks:
            files[statistics_file(task)] = self.record["tasks"][task]["sha256"]
        return files

    def widths(self) -> dict[str, int]:
        """Module -> n, its input features."""
        return {module: n for module, (_, n) in self.record["modules"].items()}

    def size(self, module: str) -> int:
        """About how many numbers `load` gives for one module."""
        rows, n = self.record["modules"][module]
        return len(self.tasks) * rows * n

    def of(self, tasks: Sequence[str]) -> "StatisticsFolder":
        """The statistics of some of the tasks, in the given order.

        Raises:
          AdapterError: a task that was not measured.
        """
        for task in tasks:
            if task not in self.record["tasks"]:
                raise AdapterError(
                    f"{self.path}: no statistics of task {task!r}, only of ",
                    f"{listing(self.record['tasks'])}; give the adapters these names ",
                    "by ",
                    Option("names", "<name,...>"),
                    ", or collect again",
                )
        return replace(self, tasks=tuple(tasks))

    def check(
        self,
        widths: Mapping[str, int],
        base_models: Iterable[str | None],
        *,
        allow_different_bases: bool = False,
    ) -> None:
        """Refuses adapters of other modules or of another base than was measured.

        Args:
          widths: module -> n, its input features.
          base_models: names of the base in the configs of the adapters.
          allow_different_bases: do not compare them.

        Raises:
          AdapterError: says which module or name does not fit.
        """
        known = self.widths()
        for module, n in widths.items():
            if module not in known:
                raise AdapterError(
                    f"{self.path}: no statistics of module {module!r}; collect them "
                    "again with all adapters that are to be merged"
                )
            if known[module] != n:
                raise AdapterError(
                    f"{self.path}: module {module!r} was measured with {known[module]} "
                    f"input features, the adapters have {n}; collect again in their "
                    "own base"
                )
        base = self.measured.get("base_model")
        for name in base_models if base and not allow_different_bases else ():
            if name is not None and name != base:
                raise AdapterError(
                    f"{self.path}: measured for adapters of {base!r}, these are of ",
                    f"{name!r}; collect again, or pass ",
                    Option("allow_different_bases", "True"),
                    " if the names mean the same model",
                )

    def check_adapters(self, sources: Sequence["Source"]) -> None:
        """Refuses other adapters than those that were in the model for their task.

        Args:
          sources: of the tasks, in their order.

        Raises:
          AdapterError: an adapter has changed or is read with other scales, or the
            names are mixed up.
        """
        adapters = self.measured.get("adapters", {})
        for task, source in zip(self.tasks, sources, strict=True):
            known = adapters.get(task)
            if known is None:
                continue
            if dict(known["sha256"]) != dict(source.sha256):
                raise AdapterError(
                    f"{self.path}: task {task!r} was measured with another adapter ",
                    f"than {source.path} (SHA-256 differs); collect again, or check ",
                    "that ",
                    Option("names", "<name,...>"),
                    " are in the order of the adapters",
                )
            self._check_scales(task, known.get("scales"), source)

    def _check_scales(
        self, task: str, known: Mapping[str, float] | None, source: "Source"
    ) -> None:
        """Refuses scales that were assumed otherwise than when it was measured."""
        if known is None:
            if source.config.get("lora_alpha") is not None:
                return
            raise AdapterError(
                f"{self.path}: does not say with which scale {source.path}, which has "
                f"no lora_alpha, was measured for task {task!r}; collect again"
            )
        for module, scale in source.scales.items():
            if known.get(module) != scale:
                raise AdapterError(
                    f"{self.path}: task {task!r} was measured with scale ",
                    f"{known.get(module)} of module {module!r}, {source.path} is read ",
                    f"with {scale}; pass the ",
                    Option("assume_alpha", "<number>"),
                    " of the collection, or collect again",
                )

    def of_adapters(self, adapters: "Adapters") -> "StatisticsFolder":
        """Those of the tasks of some adapters, `check_all` included."""
        found = self.of(adapters.names)
        found.check_all(adapters)
        return found

    def check_all(self, adapters: "Adapters") -> None:
        """`check`, `check_adapters` and `check_files` for these adapters."""
        stacks = described(adapters.stacks)
        self.check(
            {module: stack.a.shape[-1] for module, stack in stacks.items()},
            [source.base_model for source in adapters.sources],
            allow_different_bases=adapters.options.allow_different_bases,
        )
        self.check_adapters(adapters.sources)
        self.check_files()

    def check_files(self) -> None:
        """AdapterError unless the files are those that were written."""
        for name, digest in self.sha256.items():
            path = self.path / name
            if sha256(checked_file(path)) != digest:
                raise AdapterError(
                    f"{path}: is not the file that was collected (SHA-256 differs from "
                    f"{STATISTICS_FILE}); collect again"
                )

    def load(self, modules: Iterable[str] | None = None) -> "dict[str, Statistics]":
        """Module -> statistics with a leading axis of tasks, as mergers take them.

        Args:
          modules: which to read; all unless given.

        Raises:
          AdapterError: a file that is missing or damaged, or lacks a module.
        """
        from jaxmerge.io.statistics import load_moments
        from jaxmerge.stats.moments import stack_moments

        modules = None if modules is None else tuple(modules)
        paths = [self.path / statistics_file(task) for task in self.tasks]
        try:
            return stack_moments([load_moments(path, modules) for path in paths])
        except AdapterError:
            raise
        except ValueError as error:
            raise AdapterError(f"{self.path}: {error}") from error


def open_statistics(folder: Folder) -> StatisticsFolder:
    """Opens what `save_statistics` or ``jaxmerge.collect`` wrote, without its values.

    Raises:
      AdapterError: no such folder, or without a record that can be used.
    """
    folder = Path(folder)
    path = folder / STATISTICS_FILE
    if not path.is_file():
        raise AdapterError(
            f"{folder}: no {STATISTICS_FILE}; give a folder of `jaxmerge.collect`"
        )
    try:
        record = json_of(path)
        usable = (
            record["format"] == STATISTICS_FORMAT
            and all(
                isinstance(task["sha256"], str) for task in record["tasks"].values()
            )
            and all(
                len(shape) == 2 and all(type(x) is int and x > 0 for x in shape)
                for shape in record["modules"].values()
            )
            and all(
                isinstance(adapter["sha256"], dict)
                and isinstance(adapter.get("scales", {}), dict)
                for adapter in record["measured"].get("adapters", {}).values()
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{path}: not a record of statistics ({error!r})") from error
    if not usable or not record["tasks"]:
        raise AdapterError(f"{path}: not a record of statistics of this version")
    for task in record["tasks"]:
        check_task_name(task, path)
    return StatisticsFolder(folder, tuple(record["tasks"]), record, sha256(path))


def check_task_name(task: str, where: Path) -> None:
    """AdapterError unless a task's name can be that of a file.

    It may have folders in front, as those of adapters, below this one."""
    parts = PurePosixPath(task).parts
    below = not any(part.startswith((".", "/")) for part in parts)
    if not (parts and below and is_plain(task)) or task != "/".join(parts):
        raise AdapterError(f"{where}: {task!r} cannot be the name of a task's file")
