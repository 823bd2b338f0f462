"""Methods of mergekit and PEFT as pipelines, where they are the same merge.

A method whose algorithm is another one is refused, with what differs and with the
pipeline that comes nearest: docs/from_other_tools.md has the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxmerge.io.fields import number
from jaxmerge.refusals import Refusal, nearest
from jaxmerge.spec.foreign_names import counterpart
from jaxmerge.spec.kinds import EACH
from jaxmerge.spec.layerwise import Setting, varies


@dataclass(frozen=True)
class Translated:
    """A method of another tool as a merge of this one.

    Attributes:
      pipeline: its text.
      weights, densities: of each task, None for ones and where none are asked for.
      options: further options of `jaxmerge.merge`.
      notes: where the two are the same only in the mean, or up to rounding.
    """

    pipeline: str
    weights: Sequence[Setting] | None = None
    densities: Sequence[Setting] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Asked:
    """What a recipe says: weights and densities of all tasks, and what it shares."""

    method: str
    weights: Sequence[Setting]
    densities: Sequence[Setting] | None
    shared: Mapping[str, Any]

    def flag(self, name: str, default: bool) -> bool:
        value = self.shared.get(name, default)
        if not isinstance(value, bool):
            raise Refusal(f"parameters.{name}: expected true or false, got {value!r}")
        return value

    @property
    def equal(self) -> bool:
        """Whether all tasks have the same weight."""
        return all(weight == self.weights[0] for weight in self.weights)

    @property
    def normal(self) -> list[float]:
        """The weights divided by their sum."""
        total = 0.0 if varies(self.weights) else sum(map(float, self.weights))  # type: ignore[arg-type]
        if not total:
            raise Refusal(
                f"merge_method {self.method}: normalize divides by the sum of the "
                "weights, which are not plain numbers with a sum other than 0; give "
                "weights that sum to 1 and normalize: false, by task_arithmetic"
            )
        return [float(weight) / total for weight in self.weights]  # type: ignore[arg-type]

    @property
    def scaled(self) -> str:
        """The last step, which multiplies by lambda."""
        by = self.shared.get("lambda", 1.0)
        if not number(by):
            raise Refusal(f"parameters.lambda: expected one number, got {by!r}")
        return "" if by == 1 else f"|scale({float(by)})"

    def trimmed(self, step: str) -> tuple[str, Sequence[Setting] | None]:
        """A step with its density, and the densities of tasks if they differ."""
        if self.densities is None:
            raise Refusal(
                f"merge_method {self.method} needs parameters.density, the share of "
                "entries to keep"
            )
        first = self.densities[0]
        if not varies(self.densities) and all(d == first for d in self.densities):
            return f"{step}(density={first})", None
        return f"{step}(density={EACH})", self.densities


def translated(
    method: str,
    weights: Sequence[Setting],
    densities: Sequence[Setting] | None,
    shared: Mapping[str, Any],
) -> Translated:
    """A method of mergekit or PEFT, under the name that it has there.

    Args:
      method: mergekit's name of it, or PEFT's combination type if it ends in _svd, is
        cat or is svd.
      weights: of each task.
      densities: of each task; None if there are none.
      shared: other parameters: ``lambda``, ``normalize``, ``svd_rank``, ..

    Raises:
      Refusal: an unknown method or parameter, or a merge that is not the same here.

    >>> translated("ties", [0.5, 0.5], [0.2, 0.2], {"lambda": 0.7}).pipeline
    'elect|trim(density=0.2)|full|scale(0.7)'
    """
    asked = _Asked(method, weights, densities, shared)
    if method in _DIFFERENT:
        raise Refusal(f"merge_method {method}: {_DIFFERENT[method]}")
    if method not in _METHODS:
        near = nearest(method, [*_METHODS, *_DIFFERENT])
        meant = f"; did you mean {near!r}?" if near else ""
        raise Refusal(
            f"merge_method {method!r} is not known{counterpart(method) or meant}; "
            "methods of jaxmerge are given as pipeline: <steps>"
        )
    names, translate = _METHODS[method]
    for name in shared:
        if name not in names:
            near = nearest(name, (*names, "weight", "density"))
            meant = f"; did you mean {near!r}?" if near else ""
            raise Refusal(f"merge_method {method} has no parameter {name!r}{meant}")
    found = translate(asked)
    if densities is not None and "density" not in found.pipeline:
        raise Refusal(f"merge_method {method} has no density; leave it out")
    return found


def _linear(asked: _Asked) -> Translated:
    if not asked.flag("normalize", True):
        raise Refusal(
            "merge_method linear with normalize: false scales the base model too, "
            "which no adapter can; the weighted sum of the updates is task_arithmetic"
        )
    return Translated("concat", asked.normal)


def _task_arithmetic(asked: _Asked) -> Translated:
    normalize = asked.flag("normalize", False)
    weights = asked.normal if normalize else asked.weights
    return Translated(f"concat{asked.scaled}", weights)


def _ties(asked: _Asked) -> Translated:
    if asked.flag("rescale", False):
        raise Refusal("merge_method ties with rescale: true: not offered here")
    trim, densities = asked.trimmed("trim")
    if not asked.flag("normalize", True):
        text = f"elect(combine=sum_of_agreeing)|{trim}|full{asked.scaled}"
        return Translated(text, asked.weights, densities)
    if not asked.equal or asked.weights[0] == 0:
        raise Refusal(
            "merge_method ties with normalize divides every entry by the weights of "
            "the tasks that agree there; jaxmerge divides by their number, which is "
            "the same for equal weights only. Give equal weights, or normalize: "
            f"false, or as pipeline what is meant: elect|{trim}|full"
        )
    return Translated(f"elect|{trim}|full{asked.scaled}", None, densities)


def _cat(asked: _Asked) -> Translated:
    return Translated("concat", asked.weights)


def _svd(rule: str) -> Callable[[_Asked], Translated]:
    def translate(asked: _Asked) -> Translated:
        text, options = _at_rank(asked)
        if rule == "concat":
            return Translated(f"concat{text}", asked.weights, options=options)
        step = "dare" if rule.startswith("dare") else "trim"
        thinned, densities = asked.trimmed(step)
        notes = (_DRAWS,) if step == "dare" else ()
        if not rule.endswith("ties"):
            pipeline = f"total|{thinned}|full{text}"
            return Translated(pipeline, asked.weights, densities, options, notes)
        return _elected(asked, f"{thinned}|full", densities, text, options, notes)

    return translate


def _elected(
    asked: _Asked,
    thinned: str,
    densities: Sequence[Setting] | None,
    text: str,
    options: Mapping[str, Any],
    notes: tuple[str, ...],
) -> Translated:
    """PEFT elects signs without weights and applies these to the agreeing values."""
    weight = asked.weights[0]
    if not asked.equal or not number(weight) or float(weight) <= 0:  # type: ignore[arg-type]
        raise Refusal(
            f"merge_method {asked.method}: PEFT elects signs without the weights and "
            "multiplies by them afterwards; jaxmerge weighs before, which is the same "
            "for equal weights above 0 only. Give equal weights, or as pipeline what "
            f"is meant: elect|{thinned}"
        )
    signs = asked.shared.get("majority_sign_method", "total")
    if signs not in ("total", "frequency"):
        raise Refusal(
            "parameters.majority_sign_method: expected total or frequency, got "
            f"{signs!r}"
        )
    elect = "elect" if signs == "total" else "elect(sign=sign_of_count)"
    scaled = "" if weight == 1 else f"|scale({weight})"
    text = f"{elect}|{thinned}{scaled}{text}"
    return Translated(text, None, densities, options, notes)


def _at_rank(asked: _Asked) -> tuple[str, dict[str, Any]]:
    """PEFT's rank: the largest of the inputs unless given."""
    rank = asked.shared.get("svd_rank")
    if rank is None:
        return "", {"rank": "auto", "dense": "truncate"}
    if type(rank) is not int or rank < 1:
        raise Refusal(f"parameters.svd_rank: expected a whole number, got {rank!r}")
    return f"|truncate(rank={rank})", {}


_DRAWS = (
    "entries are kept at random with the same probabilities as in PEFT, not the same"
)
_SVD = ("svd_rank",)
_SIGNS = (*_SVD, "majority_sign_method")
_METHODS: dict[str, tuple[tuple[str, ...], Callable[[_Asked], Translated]]] = {
    "linear": (("normalize",), _linear),
    "task_arithmetic": (("normalize", "lambda", "int8_mask"), _task_arithmetic),
    "ties": (("normalize", "rescale", "lambda", "int8_mask"), _ties),
    "cat": ((), _cat),
    "svd": (_SVD, _svd("concat")),
    "magnitude_prune_svd": (_SVD, _svd("magnitude_prune")),
    "dare_linear_svd": (_SVD, _svd("dare_linear")),
    "ties_svd": (_SIGNS, _svd("ties")),
    "dare_ties_svd": (_SIGNS, _svd("dare_ties")),
}
_RESCALED = (
    "mergekit multiplies what it keeps so that the sum of magnitudes of each matrix "
    "stays what it was; jaxmerge divides by the probability of being kept, as the "
    "paper does. Give as pipeline what is meant: "
)
_FACTORS = (
    "PEFT does it to A and B apart, so that their product is not that merge of the "
    "updates; as pipeline it is "
)
_DIFFERENT = {
    "dare_linear": f"{_RESCALED}total|dare(density=..)|full",
    "dare_ties": f"{_RESCALED}elect|dare(density=..)|full",
    "della_linear": f"{_RESCALED}total|della(density=..)|full",
    "della": f"{_RESCALED}elect|della(density=..)|full",
    "magnitude_prune": f"{_FACTORS}total|trim(density=..)|full",
}
