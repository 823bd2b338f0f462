"""Two full models side by side: which weights differ, and what an adapter can hold."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmerge.io.base_model import BaseModel, matrix_shape
from jaxmerge.io.changes import is_turned
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.module_layout import Layout
from jaxmerge.io.tensors import FLOATING
from jaxmerge.io.tied_weights import Tie, find_tie, is_tied

_EMBEDDINGS = {
    *("embed_tokens", "tok_embeddings", "word_embeddings", "token_embedding", "wte"),
    *("position_embeddings", "position_embedding", "embed_positions", "wpe"),
    *("token_type_embeddings", "embed_in", "shared", "relative_attention_bias"),
}
_LINEAR = {"embed_out", "patch_embed"}  # names that only sound like an embedding
_FUSED = re.compile(r"\.experts\.")  # fused when transformers loads them


class Pair(NamedTuple):
    """One weight of the tuned model, and where its values are in both.

    Attributes:
      key: its name.
      tuned: key of its values in the tuned model.
      base: key of its values in the base; None where the base has no such weight.
      layout: how an adapter holds its difference; None if it cannot.
      reason: why not.
    """

    key: str
    tuned: str
    base: str | None
    layout: Layout | None
    reason: str = ""

    @property
    def module(self) -> str:
        """The module of which it is the weight."""
        return self.key.rpartition(".")[0]


@dataclass(frozen=True)
class Compared:
    """Two models of one architecture.

    Attributes:
      base, tuned: the models.
      pairs: weights of the tuned model: first those that no update can be found for,
        so that what is refused is refused early.
      only_base: weights that the tuned model has not.
    """

    base: BaseModel
    tuned: BaseModel
    pairs: tuple[Pair, ...]
    only_base: tuple[str, ...]

    def difference(self, pair: Pair) -> np.ndarray | None:
        """``tuned - base`` of a weight in float32; None where they are equal."""
        after = self.tuned.tensors.read(pair.tuned)
        if pair.base is None or self.base.tensors.infos[pair.base].shape != after.shape:
            return after
        before = self.base.tensors.read(pair.base)
        if after.dtype not in FLOATING or before.dtype not in FLOATING:
            return None if np.array_equal(after, before) else after
        if after.dtype == before.dtype and np.array_equal(after, before):
            return None
        found = after.astype(np.float32)
        found -= before.astype(np.float32, copy=False)
        if not np.isfinite(found).all():
            raise AdapterError(
                f"{self.tuned.folder}: {pair.key!r} or its difference from that of "
                f"{self.base.folder} holds NaN or infinite values"
            )
        return found if found.any() else None

    def saved(self, pair: Pair) -> Iterator[tuple[str, np.ndarray]]:
        """All tensors of the module of a weight, as the tuned model has them."""
        infos = self.tuned.tensors.infos
        names = [pair.key, *(f"{pair.module}.{leaf}" for leaf in ("weight", "bias"))]
        for name in dict.fromkeys(names):
            if name == pair.key:
                yield name, self.tuned.tensors.read(pair.tuned)
            elif name in infos:
                yield name, self.tuned.tensors.read(name)


def compare(base: BaseModel, tuned: BaseModel, save: Sequence[str] = ()) -> Compared:
    """Two models by their headers.

    Args:
      base: the model that adapters are for.
      tuned: the other one.
      save: modules whose weights are not to be taken for low-rank, by the ends of their
        names.
    """
    ties = [
        tie if tie is not None and is_tied(model, tie) else None
        for model, tie in ((base, find_tie(base)), (tuned, find_tie(tuned)))
    ]
    names, known = _with_head(tuned, ties[1]), _with_head(base, ties[0])
    alike = _alike(names, known)
    tied = ties[1] if ties[0] is not None else None
    pairs = []
    for key, source in names.items():
        before = known.get(alike.get(key, ""))
        layout, reason = _layout(key, base, tuned, before, source, save)
        if tied is not None and key in (tied.embedding, tied.head):
            layout = None
            reason = f"one weight as {tied.embedding!r} and {tied.head!r}"
        pairs.append(Pair(key, source, before, layout, reason))
    pairs.sort(key=lambda pair: pair.layout is not None)
    if not alike:
        raise AdapterError(
            f"{tuned.folder}: has no weight of a name that {base.folder} has; give two "
            "models of one architecture"
        )
    rest = tuple(sorted(known.keys() - alike.values()))
    return Compared(base, tuned, tuple(pairs), rest)


def _alike(names: Collection[str], known: Collection[str]) -> dict[str, str]:
    """Name in the tuned model -> the same weight's in the base, if it has it.

    transformers stores a model with or without the name of its inner part in front of
    all. The names with which most weights are in both are taken.
    """
    fronts = [
        {name.partition(".")[0] + "." for name in both} for both in (names, known)
    ]
    readings = [{name: name for name in names}]
    for front in sorted(fronts[0] - fronts[1]):
        readings.append({name: name.removeprefix(front) for name in names})
    for front in sorted(fronts[1] - fronts[0]):
        added = {name: front + name for name in names}
        readings.append({n: a if a in known else n for n, a in added.items()})
    found = [
        {name: other for name, other in reading.items() if other in known}
        for reading in readings
    ]
    return max(found, key=len)


def savable(pair: Pair, names: Collection[str]) -> bool:
    """Whether PEFT can save the module of a weight whole: if it has no parts."""
    inside = f"{pair.module}."
    plain = all(
        name.removeprefix(inside) in ("weight", "bias")
        for name in names
        if name.startswith(inside)
    )
    return bool(pair.module) and plain


def _with_head(model: BaseModel, tie: Tie | None) -> dict[str, str]:
    """Weight -> key of its values, tied output layers included."""
    found = {key: key for key in model.tensors.infos}
    if tie is not None:
        found.setdefault(tie.head, tie.embedding)
    return found


def _layout(
    key: str,
    base: BaseModel,
    tuned: BaseModel,
    before: str | None,
    after: str,
    save: Sequence[str],
) -> tuple[Layout | None, str]:
    """How an adapter holds an update of a weight, or why it cannot."""
    module, _, leaf = key.rpartition(".")
    shape = tuned.tensors.infos[after].shape
    name = module.rpartition(".")[2]
    if before is None:
        return None, "not in the base"
    if base.tensors.infos[before].shape != shape:
        return None, f"{list(base.tensors.infos[before].shape)} in the base"
    if any(f".{module}".endswith(f".{end}") for end in save):
        return None, "to be saved"
    if leaf != "weight" or len(shape) < 2 or 1 in matrix_shape(shape):
        return None, "no matrix"
    if _FUSED.search(key):
        return None, "an expert, which transformers fuses with others"
    if len(shape) > 2:
        grouped = shape[1] == 1 or len(shape) > 5
        kernel = Layout(f"conv{len(shape) - 2}d", kernel=shape[2:])
        return (None, "a grouped convolution") if grouped else (kernel, "")
    if name in _EMBEDDINGS:
        return Layout("embedding"), ""
    if "emb" in name and name not in _LINEAR:
        return None, "an embedding or a linear layer, which its name leaves open"
    return Layout("linear", fan_in_fan_out=is_turned(name, base)), ""
