"""Suites of tasks on pairs of sentences, with heads that the adapters saved."""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np

from experiments.suite import Split, Suite, Task
from jaxmerge.io import load_peft
from jaxmerge.tasks import Base, load_base, task_heads
from jaxmerge.tasks.texts import load_tokenizer, read_rows, read_texts, tokenise


def load_pairs(
    name: str,
    base: Path,
    adapters: Mapping[str, Path],
    texts: Path,
    *,
    length: int,
) -> Suite:
    """Reads the base and the adapters' heads, and texts when asked.

    Args:
      name: of the suite.
      base: a Hugging Face folder of BERT or Llama with its tokeniser.
      adapters: task -> its PEFT folder, which has the name of the task.
      texts: folder with a folder for each task, see `read_pairs`.
      length: tokens of a pair, special tokens included; longer pairs are truncated.

    Raises:
      ValueError: a folder that cannot be used, or an adapter without a head.
    """
    model = load_base(base)
    heads = task_heads(model, load_peft(list(adapters.values()), heads="keep"))
    found = (
        Task(
            name=task,
            adapter=folder,
            head=heads[task],
            load=cache(partial(read_pairs, model, texts / task, length=length)),
        )
        for task, folder in adapters.items()
    )
    return Suite(name, model, tuple(found))


def read_pairs(base: Base, folder: Path, part: str, *, length: int) -> Split:
    """One part of a task: token arrays [N, S], as the base reads them, and labels [N].

    Args:
      base: the model.
      folder: with ``train.jsonl.gz``, ``validation.jsonl.gz`` and ``test.jsonl.gz``;
        each line has ``text_a``, ``text_b`` and ``label``.
      part: "train", "validation" or "test".
      length: tokens of a pair; longer ones are truncated.

    Raises:
      ValueError: there is no such part.
    """
    path = folder / f"{part}.jsonl.gz"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; parts are train, validation, test")
    inputs, _ = tokenise(
        read_texts(path),
        load_tokenizer(base.folder),
        length=length,
        pad_id=base.pad_id,
        token_types=base.token_types,
    )
    labels = [row["label"] for _, row in read_rows(path)]
    return Split(inputs, np.asarray(labels, np.int32))
