"""A folder with one file of inputs for each task, and batches of them."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.folders import Folder
from jaxmerge.refusals import Option, Refusal
from jaxmerge.tasks.bases import Base, Inputs
from jaxmerge.tasks.images import read_images
from jaxmerge.tasks.next_tokens import end_of_text, next_token_inputs, read_examples
from jaxmerge.tasks.texts import load_tokenizer, read_texts, tokenise

DEFAULT_LENGTH, CAUSAL_LENGTH = 128, 512  # tokens
PLACES: dict[Inputs, tuple[str, ...]] = {
    "texts": (
        "{task}.jsonl",
        "{task}.jsonl.gz",
        "{task}/validation.jsonl",
        "{task}/validation.jsonl.gz",
    ),
    "images": ("{task}.npz",),
}


class Unlabeled(NamedTuple):
    """Inputs without labels.

    Attributes:
      inputs: task -> a pytree of arrays [N, ...].
      files: names of the files below the folder, in the order of the tasks.
      rows: task -> rows of its file, N or more.
      notes: what a reader should know.
      max_length: tokens to which texts were truncated; None for images.
      whole: task -> which of its completions were not truncated, bool [N]; None for
        tasks without prompts. Of causal language models alone.
    """

    inputs: dict[str, Any]
    files: tuple[str, ...]
    rows: dict[str, int]
    notes: tuple[str, ...]
    max_length: int | None = None
    whole: Mapping[str, np.ndarray | None] = {}

    def count(self, task: str) -> int:
        """Number of inputs of a task, N."""
        return len(jax.tree.leaves(self.inputs[task])[0])

    def batches(self, *, size: int, seed: int) -> Iterator[dict[str, Any]]:
        """Gives batches of every task without end, shuffled anew in every pass.

        The batches of a task depend on the seed and on its name alone.
        """
        seeds = {task: (seed, zlib.crc32(task.encode())) for task in self.inputs}
        return task_batches(self.inputs, size=size, seeds=seeds)


def load_unlabeled(
    folder: Folder,
    tasks: tuple[str, ...],
    base: Base,
    *,
    max_length: int | None = None,
    limit: int | None = None,
) -> Unlabeled:
    """Reads the inputs of every task.

    Args:
      folder: with ``<task>.jsonl``, ``<task>.jsonl.gz`` or
        ``<task>/validation.jsonl(.gz)`` for texts, ``<task>.npz`` for images.
      tasks: names of the adapters.
      base: the model that reads them.
      max_length: number of tokens to which texts are truncated; by default 128, 512
        for causal language models, or as many as the model has positions.
      limit: largest number of inputs of a task, see `spread`; by default all.

    Raises:
      ValueError: a task without a file or with two, or a file that cannot be used.
    """
    paths = data_files(folder, tasks, base.inputs)
    rows: dict[str, int] = {}
    notes: list[str] = []
    whole: dict[str, np.ndarray | None] = {}
    if base.inputs == "images":
        max_length = None
        size, channels = base.config.image_size, base.config.num_channels
        inputs = {}
        for task, path in paths.items():
            images = read_images(path, size=size, channels=channels)
            rows[task] = len(images)
            inputs[task] = images[spread(len(images), limit)]
    else:
        positions = base.config.longest_input
        causal = base.causal
        usual = CAUSAL_LENGTH if causal else DEFAULT_LENGTH
        max_length = max_length or min(usual, positions)
        if max_length > positions:
            raise Refusal(
                f"{base.folder}: the model has {positions} positions, fewer than ",
                Option("max_length", str(max_length)),
            )
        read = read_examples if causal else read_texts
        texts: dict[str, list[Any]] = {task: read(x) for task, x in paths.items()}
        rows = {task: len(found) for task, found in texts.items()}
        texts = {
            task: [found[row] for row in spread(len(found), limit)]
            for task, found in texts.items()
        }
        inputs = _tokens(texts, paths, base, max_length, notes, whole)
    files = tuple(path.relative_to(folder).as_posix() for path in paths.values())
    return Unlabeled(inputs, files, rows, tuple(notes), max_length, whole)


def spread(count: int, limit: int | None) -> np.ndarray:
    """Some of ``count`` rows at even distances, as files are often sorted by class.

    >>> spread(10, 4).tolist(), spread(3, 5).tolist(), spread(3, None).tolist()
    ([0, 2, 5, 7], [0, 1, 2], [0, 1, 2])
    """
    taken = count if limit is None else min(limit, count)
    return np.arange(taken) * count // taken


def data_files(folder: Folder, tasks: Sequence[str], kind: Inputs) -> dict[str, Path]:
    """task -> the file that `load_unlabeled` reads for it.

    Raises:
      ValueError: a task without a file or with two.
    """
    return {task: _find(Path(folder), task, kind) for task in tasks}


def _find(folder: Path, task: str, kind: Inputs) -> Path:
    places = [place.format(task=task) for place in PLACES[kind]]
    found = [folder / place for place in places if (folder / place).is_file()]
    if not found:
        raise Refusal(
            f"{folder}: no {kind} of task {task!r}; expected {' or '.join(places)}"
        )
    if len(found) > 1:
        raise Refusal(
            f"{folder}: task {task!r} has {found[0].name} and {found[1].name}; "
            "keep one of them"
        )
    return found[0]


def _tokens(
    texts: Mapping[str, list[Any]],
    paths: Mapping[str, Path],
    base: Base,
    max_length: int,
    notes: list[str],
    whole: dict[str, np.ndarray | None],
) -> dict[str, dict[str, np.ndarray]]:
    tokenizer, inputs = load_tokenizer(base.folder), {}
    options: dict[str, Any] = {"length": max_length, "pad_id": base.pad_id}
    end = end_of_text(base.folder, tokenizer) if base.causal else None
    for task, path in paths.items():
        if base.causal:
            inputs[task], cut = next_token_inputs(
                *(texts[task], tokenizer), end=end, path=path, **options
            )
            whole[task] = None if texts[task][0].prompt is None else ~cut
            truncated = int(cut.sum())
        else:
            inputs[task], truncated = tokenise(
                *(texts[task], tokenizer), token_types=base.token_types, **options
            )
        _check_tokens(path, inputs[task], base)
        if truncated:
            notes.append(
                f"{truncated} of {len(texts[task])} inputs of {task} were truncated to "
                f"{max_length} tokens"
            )
    return inputs


def _check_tokens(path: Path, inputs: Mapping[str, np.ndarray], base: Base) -> None:
    """Refuses tokens that the model does not have: a gather would clamp them."""
    limits = {"input_ids": base.config.vocab_size}
    if base.token_types:
        limits["token_type_ids"] = base.config.type_vocab_size
    for name, limit in limits.items():
        largest = int(inputs[name].max())
        if largest >= limit:
            raise Refusal(
                f"{path}: tokenizer.json gives {name} up to {largest}, the model in "
                f"{base.folder} has {limit}; they do not belong together"
            )
    if not inputs["attention_mask"].any(axis=1).all():
        raise Refusal(f"{path}: holds a text without any token")


def task_batches(
    inputs: Mapping[str, Any], *, size: int, seeds: Mapping[str, tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """Gives batches of every task without end; each task has a seed of its own.

    Args:
      inputs: task -> arrays [N, ...].
      size: inputs of each task in a batch.
      seeds: task -> what the order of its inputs depends on.
    """
    sources = {task: shuffled(inputs[task], size, seeds[task]) for task in inputs}
    while True:
        yield {task: next(source) for task, source in sources.items()}


def shuffled(inputs: Any, size: int, seed: tuple[int, int]) -> Iterator[Any]:
    """Gives batches of ``size`` inputs without end, shuffled anew in every epoch."""
    count = len(jax.tree.leaves(inputs)[0])
    rng = np.random.default_rng(seed)
    waiting = np.empty(0, int)
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(count)])
        chosen, waiting = waiting[:size], waiting[size:]
        yield jax.tree.map(lambda x, chosen=chosen: x[chosen], inputs)
