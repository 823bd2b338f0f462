"""Pairs of sentences as token arrays, tokenised once."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from experiments.suite import Split


def read_pairs(
    folder: Path, part: str, tokenizer: Tokenizer, *, token_types: bool = True
) -> Split:
    """One part of a task: token arrays [N, S] and labels [N].

    Args:
      folder: with ``train.jsonl.gz``, ``validation.jsonl.gz`` and ``test.jsonl.gz``;
        each line has ``text_a``, ``text_b`` and ``label``.
      part: "train", "validation" or "test".
      tokenizer: truncates and pads to one length on the right.
      token_types: whether the model tells the two texts apart.

    Returns:
      Split; the inputs are ``input_ids``, ``attention_mask`` and, with token types,
      ``token_type_ids``.

    Raises:
      ValueError: there is no such part.
    """
    path = folder / f"{part}.jsonl.gz"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; parts are train, validation, test")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    encodings = tokenizer.encode_batch([(row["text_a"], row["text_b"]) for row in rows])
    inputs = {
        "input_ids": [encoding.ids for encoding in encodings],
        "attention_mask": [encoding.attention_mask for encoding in encodings],
    }
    if token_types:
        inputs["token_type_ids"] = [encoding.type_ids for encoding in encodings]
    arrays = {name: np.asarray(rows, np.int32) for name, rows in inputs.items()}
    return Split(arrays, np.asarray([row["label"] for row in rows], np.int32))


def lengths(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Tokens of each pair without padding: [N]."""
    return inputs["attention_mask"].sum(axis=1)


def crop(inputs: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """The first ``length`` tokens of every pair."""
    return {name: tokens[:, :length] for name, tokens in inputs.items()}


def visible(inputs: dict[str, Any]) -> Any:
    """Which tokens are not padding: bool [B, S]."""
    return inputs["attention_mask"] != 0
