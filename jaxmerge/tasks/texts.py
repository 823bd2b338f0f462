"""Files of texts as arrays of tokens."""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmerge.refusals import Refusal
from jaxmerge.tasks.task_types import CAUSAL
from jaxmerge.untrusted.json_text import parse_json
from jaxmerge.untrusted.text import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FIELDS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("text",),
)
OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids")  # arrays [N, S]
_MULTIPLE = 16  # token counts are rounded up to it, so that more tasks share a shape

Texts = list[tuple[str, ...]]  # single texts or pairs


def read_rows(path: Path) -> list[tuple[int, Any]]:
    """Numbers and values of the lines of a JSON lines file, gzipped or not.

    Raises:
      ValueError: the file cannot be read, or is empty.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as lines:
            rows = [
                (number, parse_json(line))
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise Refusal(f"{path}: not readable as JSON lines ({error})") from None
    if not rows:
        raise Refusal(f"{path}: holds no texts")
    return rows


def read_texts(path: Path) -> Texts:
    """Texts or pairs of texts of a JSON lines file, gzipped or not.

    The first line decides which of `FIELDS` are read; other fields, such as labels,
    are ignored.

    Raises:
      ValueError: a file or a line that cannot be read, names the line.
    """
    rows = read_rows(path)
    fields = _fields(path, rows[0][1])
    return [_texts(path, number, row, fields) for number, row in rows]


def _fields(path: Path, row: Any) -> tuple[str, ...]:
    names = set(row) if isinstance(row, dict) else set()
    found = [fields for fields in FIELDS if names.issuperset(fields)]
    if len(found) != 1:
        spoken = "completion" in names
        wanted = ", or ".join(" and ".join(fields) for fields in FIELDS)
        raise Refusal(
            f"{path}: the fields of a line must be {wanted}, and only one of these; "
            f"found {shown(', '.join(sorted(names)), keep='')[:500] or 'none'}",
            *(("; of a causal language model say so by ", CAUSAL) if spoken else ()),
        )
    return found[0]


def _texts(
    path: Path, number: int, row: Any, fields: tuple[str, ...]
) -> tuple[str, ...]:
    given = [row.get(field) for field in fields] if isinstance(row, dict) else []
    texts = tuple(text for text in given if isinstance(text, str))
    if not texts or len(texts) < len(given):
        raise Refusal(f"{path}: line {number} has no text in {' and '.join(fields)}")
    return texts


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The tokeniser of a model folder.

    Raises:
      ValueError: no ``tokenizer.json`` that can be read, or the library is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise Refusal(
            "texts need the library tokenizers: pip install 'jaxmerge[learn]'"
        ) from None
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise Refusal(
            f"{path}: no such file; save the model's fast tokenizer beside it "
            "(AutoTokenizer.from_pretrained(..).save_pretrained(..))"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise Refusal(f"{path}: not readable as a tokenizer ({error})") from None


def tokenise(
    texts: Texts,
    tokenizer: "Tokenizer",
    *,
    length: int,
    pad_id: int = 0,
    token_types: bool = False,
) -> tuple[dict[str, np.ndarray], int]:
    """Texts as arrays [N, S] in int32, padded on the right.

    S is the largest number of tokens rounded up to a multiple of 16, at most
    ``length``. Of a longer pair the longer text is truncated first.

    Args:
      texts: N texts or pairs.
      tokenizer: its own settings of padding and truncation are replaced.
      length: tokens of an input, special tokens included.
      pad_id: token that fills an input up.
      token_types: add ``token_type_ids``.

    Returns:
      ``input_ids``, ``attention_mask`` and possibly ``token_type_ids``; and how many
      inputs were truncated.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(length, strategy="longest_first")
    single = len(texts[0]) == 1
    encodings = tokenizer.encode_batch([x[0] for x in texts] if single else texts)
    ids = [encoding.ids for encoding in encodings]
    width = padded_width(ids, length)
    inputs = {
        "input_ids": padded(ids, width, pad_id),
        "attention_mask": padded([[1] * len(row) for row in ids], width, 0),
    }
    if token_types:
        types = [encoding.type_ids for encoding in encodings]
        inputs["token_type_ids"] = padded(types, width, 0)
    return inputs, sum(bool(encoding.overflowing) for encoding in encodings)


def cropped(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Texts without columns that are padding in all of them.

    The width is 16, 32, 64 and so on, or as it was, so that batches of a file have few
    shapes. Arrays of other names than `OF_TOKENS` stay.
    """
    mask = inputs["attention_mask"]
    used, width = int(np.flatnonzero(mask.any(axis=0)).max()) + 1, _MULTIPLE
    while width < used:
        width *= 2
    return {
        name: values[:, :width] if name in OF_TOKENS else values
        for name, values in inputs.items()
    }


def padded_width(rows: Sequence[Sequence[int]], length: int) -> int:
    """The largest number of tokens rounded up to a multiple of 16, at most a length."""
    longest = max(1, *map(len, rows))
    return min(length, -(-longest // _MULTIPLE) * _MULTIPLE)


def padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> np.ndarray:
    """Rows of different lengths as one array [N, width] in int32."""
    filled = np.full((len(rows), width), fill, np.int32)
    for target, row in zip(filled, rows, strict=True):
        target[: len(row)] = row
    return filled
