"""What jobs read: adapters under names of their own, a base, heads and inputs."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from jaxmerge.folders import Folder
from jaxmerge.io.options import (
    Alpha,
    HeadPolicy,
    Layout,
    ScanAxis,
    TaskType,
    WeightFile,
)
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.refusals import Option, Refusal

if TYPE_CHECKING:
    import numpy as np

    from jaxmerge.io import Adapters
    from jaxmerge.tasks import Base, Unlabeled


class ReadOptions(TypedDict, total=False):
    """Options of `jaxmerge.io.load_peft`, which documents them."""

    heads: HeadPolicy
    assume_alpha: float | Literal["rank"] | None
    strip_prefix: str
    add_prefix: str
    allow_different_bases: bool
    allow_similar_names: bool
    allow_zero: bool
    weight_file: WeightFile | None
    ignore_config_keys: Sequence[str]
    vera_inputs: int | Mapping[str, int] | None
    layout: Layout | None
    hub: bool
    lora_alpha: Alpha | None
    scan_axis: ScanAxis | None


class ModelInputs(NamedTuple):
    """Adapters, their base, their heads and the inputs of their tasks.

    Attributes:
      files: digests of what was read beside the adapters; empty unless asked for.
    """

    adapters: "Adapters"
    base: "Base"
    heads: dict[str, Any]
    unlabeled: "Unlabeled"
    files: dict[str, Any]

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading changed or left out."""
        return (*self.adapters.notes, *self.unlabeled.notes)


def read_adapters(
    folders: Sequence[Folder],
    names: Sequence[str] | None,
    read: ReadOptions,
    *,
    stream: bool = False,
) -> "Adapters":
    """PEFT adapters, under the given names of their tasks."""
    from jaxmerge import io

    adapters = io.load_peft(folders, stream=stream, **read)
    return replace(adapters, names=task_names(names, adapters.names))


def one_adapter(
    value: "Adapters | dict[str, Any]", path: Folder, task: str | None
) -> "Adapters":
    """The one adapter that was read, or the one of this name."""
    from jaxmerge.io import Adapters

    if not isinstance(value, Adapters):
        raise Refusal(
            f"{path}: holds merged updates without the layouts of an adapter; write "
            "them with jaxmerge.io.save_peft(..., like=adapters)"
        )
    names = value.names
    if task is None:
        if len(names) != 1:
            raise Refusal(
                f"{path}: holds {', '.join(names)}; choose one with ", Option("task")
            )
        task = names[0]
    if task not in names:
        raise Refusal(f"{path}: no adapter {task!r}; there are {', '.join(names)}")
    return value.task(task)


def read_model_inputs(
    folders: Sequence[Folder],
    *,
    base: Folder,
    data: Folder,
    names: Sequence[str] | None = None,
    text_heads: Folder | None = None,
    task_type: TaskType | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    with_heads: bool = True,
    with_digests: bool = False,
    progress: Progress = silent,
    read: ReadOptions,
) -> ModelInputs:
    """Reads everything, and refuses what does not belong together.

    Without heads their mapping is empty, as it is for causal language models.
    """
    from jaxmerge.tasks import load_base, load_unlabeled, task_heads
    from jaxmerge.tasks.heads import check_fit, check_saved
    from jaxmerge.tasks.record import digests, steady
    from jaxmerge.tasks.task_types import task_type_of

    with progress("reading", 3) as advance, refusing_bad_input(), ExitStack() as stack:
        adapters = read_adapters(folders, names, read)
        kind = task_type_of(adapters, task_type)
        files: dict[str, Any] = {}
        if with_digests:
            vectors = None if text_heads is None else Path(text_heads)
            groups = steady(base, data, adapters.names, vectors, kind)
            files = digests(stack.enter_context(groups))
        advance(1)
        model = load_base(base, kind)
        advance(1)
        unlabeled = load_unlabeled(
            data, adapters.names, model, max_length=max_length, limit=limit
        )
        heads: dict[str, Any] = {}
        if with_heads:
            heads = task_heads(model, adapters, text_heads)
        else:
            check_saved(adapters, model)
        check_fit(model, adapters, heads, unlabeled, with_heads=with_heads)
        advance(1)
    return ModelInputs(adapters, model, heads, unlabeled, files)


def labels_of_all(
    data: Folder, unlabeled: "Unlabeled", heads: Mapping[str, Any]
) -> "dict[str, np.ndarray]":
    """task -> classes [N]; refuses tasks without labels."""
    from jaxmerge.tasks import load_labels

    labels = load_labels(data, unlabeled, heads)
    found = {task: classes for task, classes in labels.items() if classes is not None}
    bare = [task for task in labels if task not in found]
    if bare:
        raise Refusal(
            f"the data of {', '.join(bare)} have no labels, which accuracy needs: give "
            "the number of its class as field label of every line, or in the array "
            "labels, or leave the task out of ",
            Option("names"),
        )
    return found


def task_names(
    given: Sequence[str] | None, folders: tuple[str, ...]
) -> tuple[str, ...]:
    """The given names of the tasks, or those of the folders."""
    if given is None:
        return folders
    names = different_names(given)
    if len(names) != len(folders):
        raise Refusal(
            Option("names", ",".join(names)),
            f": expected {len(folders)} different names, one for each adapter",
        )
    return names


def different_names(given: Sequence[str]) -> tuple[str, ...]:
    """Names of tasks, each of which may name a file."""
    names, shown = tuple(given), Option("names", ",".join(given))
    if len(set(names)) < len(names):
        raise Refusal(shown, ": expected different names")
    for name in names:
        if not name or name.startswith(".") or "/" in name or os.sep in name:
            raise Refusal(shown, f": {name!r} cannot be the name of a file")
    return names


def paths_of(*folders: Folder | None) -> list[Path]:
    """The folders that are given, as paths."""
    return [Path(folder) for folder in folders if folder is not None]


@contextmanager
def refusing_bad_input() -> Generator[None, None, None]:
    """Turns a ValueError of loaders and checks into a `Refusal`."""
    try:
        yield
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal(str(error)) from error
