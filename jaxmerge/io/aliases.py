"""One module under two names, found by what differs between them, wherever it stands.

Two classes of models often hold the same layers: ``model.layers.0.fc`` of a language
model is ``model.language_model.layers.0.fc`` of the one that also sees. Adapters of the
two merge without a word, into an adapter of which any model uses only a part.

Two names are taken for one module if they have the same end and the same numbers, the
shapes are equal, no adapter has both, and what differs is a piece more or another word
at one place. Parts that stand side by side in one model, such as encoder and decoder,
are told by their words.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from jaxmerge.io.errors import AdapterError

Shapes = Mapping[str, tuple[int, int]]
_Kind = tuple[str, ...]  # the pieces of a name, with "#" for every number
_Numbers = tuple[str, ...]

_MOST_KINDS = 150  # bounds what comparing them pair by pair costs
# ends that occur at many places of one model, and do not tell a layer by themselves
_PLAIN = {
    *("dense", "linear", "lin", "fc", "fc#", "proj", "c_proj", "conv", "conv#", "#"),
    *("in", "out", "output", "layer", "weight"),
}
_SIDES = {
    "encoder": "encoder enc",
    "decoder": "decoder dec",
    "seen": "vision visual image img pixel vit",
    "heard": "audio speech",
    "text": "text language lang llm",
    **{side: side for side in ("down", "mid", "up", "thinker", "talker", "teacher")},
    **{side: side for side in ("student", "spatial", "temporal", "global", "local")},
    **{side: side for side in ("pre", "post", "coarse", "fine", "semantic", "adapter")},
    "self": "self selfattention",
    "cross": "cross crossattention",
    **{side: side for side in ("shared", "single", "double")},
}
_SIDE_OF = {word: side for side, words in _SIDES.items() for word in words.split()}
_MARKED = {
    *("cross", "shared", "single", "double", "spatial", "temporal", "global", "local"),
    *("pre", "post"),
}


@dataclass(frozen=True)
class Alias:
    """Modules that two adapters name in two ways.

    Attributes:
      adapters: the places of the two.
      names: of one module, in the one and in the other; of different layers if the
        adapters have no layer in common.
      pairs: name in the one -> name in the other.
      changes: what stands before the difference, and the two differing parts; in up to
        two ways, as a repeated piece can be taken for either.
    """

    adapters: tuple[int, int]
    names: tuple[str, str]
    pairs: Mapping[str, str]
    changes: tuple[tuple[str, str, str], ...]


def aliases(adapters: Sequence[Shapes]) -> list[Alias]:
    """The largest group of modules under two names, for every two adapters.

    Args:
      adapters: module -> shape of its update, of each adapter.

    >>> text, sees = ({f"model.{x}layers.0.fc": (6, 5)} for x in ("", "lm."))
    >>> [alias.names for alias in aliases([text, sees])]
    [('model.layers.0.fc', 'model.lm.layers.0.fc')]
    """
    found: list[Alias] = []
    kinds = functools.cache(lambda place: _kinds(adapters[place]))
    for one, other in combinations(range(len(adapters)), 2):
        between = list(_between(one, other, adapters, kinds))
        if between:
            found.append(max(between, key=lambda alias: len(alias.pairs)))
    return found


def side_by_side(mine: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether pieces that differ name two parts of one model, such as its towers.

    >>> side_by_side(["vision_model"], ["text_model"]), side_by_side(["bert"], ["lm"])
    (True, False)
    """
    bare = [re.sub(r"_?#", "", ".".join(pieces)) for pieces in (mine, theirs)]
    if bare[0] == bare[1]:  # attn1 and attn2
        return True
    if len(mine) == len(theirs) == 1 and _words(mine) == _words(theirs):
        return True  # a_to_b and b_to_a
    one, other = (_sides(pieces) for pieces in (mine, theirs))
    if one and other:
        return one != other
    return bool(mine and theirs and (one | other) & _MARKED)


def kind_of(name: str) -> tuple[str, ...]:
    """The pieces of a name, with "#" for every number.

    >>> kind_of("h.10.conv2")
    ('h', '#', 'conv#')
    """
    return tuple(re.sub(r"\d+", "#", name).split("."))


def _sides(pieces: Sequence[str]) -> set[str]:
    return {_SIDE_OF[word] for word in _words(pieces) if word in _SIDE_OF}


def _words(pieces: Sequence[str]) -> list[str]:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", " ".join(pieces))
    return sorted(word.lower() for word in words)


def _between(
    one: int,
    other: int,
    adapters: Sequence[Shapes],
    kinds_of: Callable[[int], Mapping[_Kind, list[str]]],
) -> Iterator[Alias]:
    mine, theirs = adapters[one], adapters[other]
    kinds = _kinds(name for name in mine if name not in theirs)
    others = _kinds(name for name in theirs if name not in mine)
    if not kinds or not others:
        return
    if max(len(kinds), len(others)) > _MOST_KINDS:
        raise AdapterError(
            f"the adapters have over {_MOST_KINDS} kinds of modules that the other "
            "lacks; they belong to different base models"
        )
    for kind, counterpart in _candidates(kinds, others):
        splits = [s for s in _splits(kind, counterpart) if _alike(kind, counterpart, s)]
        if not splits:
            continue
        split = splits[0]
        here, there = (
            _placed(names, split) for names in (kinds[kind], others[counterpart])
        )
        if here is None or there is None:
            continue
        pairs = {here[place]: there[place] for place in here if place in there}
        if pairs:
            names = next(iter(pairs.items()))
            same = all(mine[a] == theirs[b] for a, b in pairs.items())
        else:
            names = kinds[kind][0], others[counterpart][0]
            same = _before_numbers(kind, counterpart, split) and (
                {mine[n] for n in kinds[kind]}
                == {theirs[n] for n in others[counterpart]}
            )
        whole = map(kinds_of, range(len(adapters)))
        if same and not _stand_together(kind, counterpart, split, whole):
            yield Alias(
                (one, other), names, pairs, tuple(_change(names, s) for s in splits)
            )


def _kinds(names: Iterable[str]) -> dict[_Kind, list[str]]:
    found: dict[_Kind, list[str]] = {}
    for name in names:
        found.setdefault(kind_of(name), []).append(name)
    return found


def _candidates(
    kinds: Mapping[_Kind, list[str]], others: Mapping[_Kind, list[str]]
) -> Iterator[tuple[_Kind, _Kind]]:
    """Kinds with one last piece, or of which one goes on behind the other."""
    ends: dict[str, list[_Kind]] = {}
    for other in others:
        ends.setdefault(other[-1], []).append(other)
        if other[:-1] in kinds:
            yield other[:-1], other
    for kind in kinds:
        if kind[:-1] in others:
            yield kind, kind[:-1]
        yield from ((kind, other) for other in ends.get(kind[-1], ()) if other != kind)


def _splits(kind: _Kind, other: _Kind) -> list[tuple[int, int]]:
    """How many pieces agree in front and behind, counted from either side first."""
    shortest = min(len(kind), len(other))
    behind = _agreeing(kind[::-1], other[::-1], shortest)
    before = _agreeing(kind, other, shortest)
    found = [
        (_agreeing(kind, other, shortest - behind), behind),
        (before, _agreeing(kind[::-1], other[::-1], shortest - before)),
    ]
    return list(dict.fromkeys(found))


def _agreeing(kind: Sequence[str], other: Sequence[str], most: int) -> int:
    return next((i for i in range(most) if kind[i] != other[i]), most)


def _differing(kind: _Kind, split: tuple[int, int]) -> _Kind:
    before, behind = split
    return kind[before : len(kind) - behind]


def _alike(kind: _Kind, other: _Kind, split: tuple[int, int]) -> bool:
    """Whether two kinds can name one layer, as far as their pieces tell."""
    before, behind = split
    mine, theirs = _differing(kind, split), _differing(other, split)
    if behind == 0:  # a layer and what is inside it
        inside = mine or theirs
        return not (mine and theirs) and len(inside) == 1 and "#" not in inside[0]
    if side_by_side(mine, theirs):
        return False
    if mine and theirs and "".join(mine).count("#") != "".join(theirs).count("#"):
        return False
    if before == 0 and not (mine and theirs):  # a prefix
        return True
    return behind > 1 or kind[-1] not in _PLAIN


def _before_numbers(kind: _Kind, other: _Kind, split: tuple[int, int]) -> bool:
    """Whether two kinds differ above the numbered layers."""
    before, behind = split
    above = [*kind[:before], *_differing(kind, split), *_differing(other, split)]
    return "#" in kind[len(kind) - behind :] and "#" not in "".join(above)


def _placed(names: Sequence[str], split: tuple[int, int]) -> dict[_Numbers, str] | None:
    """Names by the numbers outside of the difference; None if those are not unique."""
    before, behind = split
    found: dict[_Numbers, str] = {}
    for name in names:
        pieces = name.split(".")
        common = ".".join([*pieces[:before], *pieces[len(pieces) - behind :]])
        found[tuple(re.findall(r"\d+", common))] = name
    return found if len(found) == len(names) else None


def _stand_together(
    kind: _Kind,
    other: _Kind,
    split: tuple[int, int],
    adapters: Iterable[Mapping[_Kind, list[str]]],
) -> bool:
    """Whether one adapter has both in one layer, so that they are different modules."""
    for kinds in adapters:
        if kind in kinds and other in kinds:
            here, there = (_placed(kinds[k], split) or {} for k in (kind, other))
            if here.keys() & there.keys():
                return True
    return False


def _change(names: tuple[str, str], split: tuple[int, int]) -> tuple[str, str, str]:
    """What stands before the difference of two names, and the two parts."""
    mine, theirs = (tuple(name.split(".")) for name in names)
    parts = mine[: split[0]], _differing(mine, split), _differing(theirs, split)
    before, one, other = ("".join(f"{piece}." for piece in part) for part in parts)
    return before, one, other
