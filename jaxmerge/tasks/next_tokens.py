"""Texts for causal language models: which of their tokens count as next tokens.

Inputs are those of a text model with two more arrays [N, C], C being the largest
number of tokens that count in a text, rounded up as S is: ``places``, numbers of the
tokens whose hidden states predict them, and ``next_ids``, the tokens themselves, `NONE`
where there are fewer. So the features of a model are [B, C, d], and a prompt of any
length costs none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.models import hub
from jaxmerge.models.adapt import Apply
from jaxmerge.refusals import Option, Refusal
from jaxmerge.tasks.texts import padded, padded_width, read_rows
from jaxmerge.untrusted.json_text import read_json
from jaxmerge.untrusted.text import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"
PLACES, NEXT, NONE = "places", "next_ids", -1
FIELDS = (("prompt", "completion"), ("prompt", "answer"), ("text",))


class Example(NamedTuple):
    """A text whose last part counts.

    Attributes:
      line: where it stands in its file.
      prompt: does not count; None where all of the text does.
      text: the completion or answer, or all of the text.
    """

    line: int
    prompt: str | None
    text: str


def at_places(hidden: Apply) -> Apply:
    """Hidden states [B, C, d] of the tokens whose next one counts.

    Args:
      hidden: a decoder, ``(params, inputs) -> [B, S, d]``.
    """

    states = without_places(hidden)

    def apply(params: Any, inputs: Mapping[str, jax.Array]) -> jax.Array:
        places = jnp.asarray(inputs[PLACES])
        return jnp.take_along_axis(states(params, inputs), places[..., None], axis=1)

    return apply


def without_places(apply: Apply) -> Apply:
    """A model of texts that is not told which of their tokens count."""

    def states(params: Any, inputs: Mapping[str, jax.Array]) -> Any:
        texts = {k: v for k, v in inputs.items() if k not in (PLACES, NEXT)}
        return apply(params, texts)

    return states


def counted_tokens(inputs: Mapping[str, Any]) -> Any:
    """Which features of a batch count, bool [B, C]."""
    return inputs[NEXT] != NONE


def counted_inputs(inputs: Mapping[str, Any]) -> jax.Array:
    """Which tokens of a batch have a next one that counts, bool [B, S]."""
    rows = jnp.arange(len(inputs[PLACES]))[:, None]
    nothing = jnp.zeros(inputs["input_ids"].shape, bool)
    return nothing.at[rows, inputs[PLACES]].max(counted_tokens(inputs))


def read_examples(path: Path) -> list[Example]:
    """Texts, or prompts with what follows, of a JSON lines file, gzipped or not.

    The first line decides which of `FIELDS` are read, the completion where there is an
    answer too; others are ignored.

    Raises:
      ValueError: a file or a line that cannot be read, or a text, completion or answer
        that is empty; names the line.
    """
    rows = read_rows(path)
    names = set(rows[0][1]) if isinstance(rows[0][1], dict) else set()
    found = [fields for fields in FIELDS if names.issuperset(fields)]
    if not found or found[0] != found[-1] == FIELDS[-1]:
        raise Refusal(
            f"{path}: the fields of a line must be prompt and completion, prompt and "
            "answer, or text alone, for a causal language model; found "
            f"{shown(', '.join(sorted(names)), keep='')[:500] or 'none'}"
        )
    return [_example(path, number, row, found[0]) for number, row in rows]


def _example(path: Path, line: int, row: Any, fields: tuple[str, ...]) -> Example:
    given = [row.get(name) for name in fields] if isinstance(row, dict) else []
    texts = [text for text in given if isinstance(text, str)]
    if not texts or len(texts) < len(given):
        raise Refusal(f"{path}: line {line} has no text in {' and '.join(fields)}")
    if not texts[-1].strip():
        raise Refusal(f"{path}: line {line} has an empty {fields[-1]}; leave it out")
    return Example(line, texts[0] if len(texts) > 1 else None, texts[-1])


def end_of_text(folder: Path, tokenizer: "Tokenizer") -> int | None:
    """Number of the token that ends a text, None where the folder names none.

    It is ``eos_token`` of ``tokenizer_config.json``, otherwise ``eos_token_id`` of
    ``config.json``.

    Raises:
      ValueError: the tokenizer has no such token, or the config names several.
    """
    path = folder / TOKENIZER_CONFIG
    if path.is_file():
        try:
            found: Any = read_json(path)
            token = found.get("eos_token")
            token = token.get("content") if isinstance(token, dict) else token
        except (ValueError, AttributeError) as error:
            raise Refusal(f"{path}: not readable as JSON ({error})") from None
        if token is not None:
            number = tokenizer.token_to_id(token) if isinstance(token, str) else None
            if number is None:
                raise Refusal(
                    f"{path}: tokenizer.json has no eos_token {json.dumps(token)}; "
                    "they do not belong together"
                )
            return number
    number = hub.read_config(folder).get("eos_token_id")
    if isinstance(number, list):
        raise Refusal(
            f"{folder / hub.CONFIG}: eos_token_id names {len(number)} tokens, so the "
            f"one that ends a text is not known; save {TOKENIZER_CONFIG} beside it "
            "(AutoTokenizer.from_pretrained(..).save_pretrained(..))"
        )
    return number if isinstance(number, int) else None


def next_token_inputs(
    examples: Sequence[Example],
    tokenizer: "Tokenizer",
    *,
    length: int,
    end: int | None,
    pad_id: int,
    path: Path,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Texts as arrays [N, S] in int32, padded on the right, and what counts, [N, C].

    Prompt and completion are tokenised as one text, and ``end`` follows. What the
    prompt alone does not begin with counts: the completion, and a token across the
    border. Of a text without a prompt all tokens but the first count.

    Args:
      examples: N texts.
      tokenizer: its own settings of padding and truncation are replaced.
      length: tokens of an input, cut off at its end.
      end: number of the token that ends a text, unless None.
      pad_id: token that fills an input up.
      path: file of the texts, for messages.

    Returns:
      The inputs, and which of them were truncated, bool [N].

    Raises:
      ValueError: inputs of which no token counts; names the first of their lines.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    whole = _encoded(tokenizer, [(x.prompt or "") + x.text for x in examples])
    prompts = _encoded(tokenizer, [x.prompt or "" for x in examples])
    ids, places, following, truncated, empty = [], [], [], [], []
    for example, row, prompt in zip(examples, whole, prompts, strict=True):
        first = 0 if example.prompt is None else _common(row, prompt)
        if end is not None and row[-1:] != [end]:
            row = [*row, end]
        truncated.append(len(row) > length)
        row = row[:length]
        first = max(first, 1)  # nothing predicts the first token
        if first >= len(row):
            empty.append(example.line)
            continue
        ids.append(row)
        places.append(range(first - 1, len(row) - 1))
        following.append(row[first:])
    if empty:
        others = f" and {len(empty) - 1} others" if len(empty) > 1 else ""
        raise Refusal(
            f"{path}: of line {empty[0]}{others} no token counts within {length} "
            "tokens; give a larger ",
            Option("max_length"),
            ", or leave them out" if others else ", or leave the line out",
        )
    width, most = padded_width(ids, length), padded_width(places, length)
    inputs = {
        "input_ids": padded(ids, width, pad_id),
        "attention_mask": padded([[1] * len(row) for row in ids], width, 0),
        PLACES: padded(places, most, 0),
        NEXT: padded(following, most, NONE),
    }
    return inputs, np.array(truncated)


def _encoded(tokenizer: "Tokenizer", texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def _common(row: Sequence[int], prompt: Sequence[int]) -> int:
    """With how many tokens of the prompt alone a row begins."""
    pairs = enumerate(zip(row, prompt, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(row), len(prompt)))
