"""Tokenizers of whole words for the small models that examples are tried on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Part = dict[str, Any]


def write(
    folder: Path,
    words: Sequence[str],
    *,
    single: Sequence[Part],
    pair: Sequence[Part],
    special: Mapping[str, int],
) -> None:
    """Writes ``tokenizer.json``.

    Args:
      folder: to write into.
      words: every token, in the order of their numbers.
      single: what a text becomes, of `special_token` and `text`.
      pair: what two texts become.
      special: tokens that these add, and their numbers.
    """
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": {
                token: {"id": token, "ids": [number], "tokens": [token]}
                for token, number in special.items()
            },
        },
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": "[UNK]",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def special_token(token: str, part: int = 0) -> Part:
    """A token that the tokenizer adds."""
    return {"SpecialToken": {"id": token, "type_id": part}}


def text(name: str, part: int = 0) -> Part:
    """The place of the first text, "A", or of the second, "B"."""
    return {"Sequence": {"id": name, "type_id": part}}
