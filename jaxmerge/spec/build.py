"""From a sequence of steps to a function that merges a whole model."""

from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from typing import Any

import jax

from jaxmerge.magnitudes import at_ordinary_scale
from jaxmerge.mergers.spaces import in_space
from jaxmerge.mergers.whole_model import calibrated_model, each_module
from jaxmerge.spec.grammar import Call
from jaxmerge.spec.kinds import EACH, Kind, resolve
from jaxmerge.types import (
    Calibration,
    Learned,
    Merger,
    ModelMerger,
    Rule,
    Space,
    Update,
)
from jaxmerge.updates import calibrated, scale


@cache
def model_merger(calls: tuple[Call, ...]) -> ModelMerger:
    """The merge of some steps, made once so that its programs are compiled once.

    Returns:
      ModelMerger, which multiplies the update of every module by one more input of the
      call, ``factor``; it is traced.
    """
    around = (*_calibrations(calls), Calibration(after=_times))
    whole_model = _whole_model(calls)
    if whole_model is not None:
        merge = calibrated_model(whole_model, *around)
    else:
        merge = each_module(reduce(calibrated, around, _merger(calls)))
    if not all(map(_homogeneous, calls)):
        return merge
    return at_ordinary_scale(merge, together=whole_model is not None)


@cache
def learned_merger(calls: tuple[Call, ...]) -> Learned:
    """The learned merger of some steps, with what surrounds it."""
    from jaxmerge.learning.coefficients import compose  # it loads all of learning

    (first,) = _calls_of(calls, "learned merger")
    learned = _configured(first)()
    for before, after in _calibrations(calls):
        posts = () if after is None else (after,)
        learned = compose(learned, *posts, before=before)
    return learned


def _whole_model(calls: Sequence[Call]) -> ModelMerger | None:
    """The merger of some steps if it needs all modules at once."""
    through_model = _calls_of(calls, "model merger")
    if through_model:
        return _configured(through_model[0])
    transforms = _calls_of(calls, "whole-model transform")
    if transforms:
        return _configured(transforms[0])(_rule(calls), _space(calls))
    return None


def _homogeneous(call: Call) -> bool:
    """Whether its result is multiplied by c when all B, or all A, are."""
    told = call.step.homogeneous
    return dict(call.arguments)[told] if isinstance(told, str) else told


def _merger(calls: Sequence[Call]) -> Merger:
    direct = _calls_of(calls, "merger")
    return _configured(direct[0]) if direct else in_space(_space(calls), _rule(calls))


def _rule(calls: Sequence[Call]) -> Rule:
    (first,) = _calls_of(calls, "rule")
    rule = _configured(first)
    for call in _calls_of(calls, "rule transform"):
        rule = _configured(call)(rule)
    return rule


def _space(calls: Sequence[Call]) -> Space:
    (space,) = _calls_of(calls, "space")
    found = _configured(space)
    return found if isinstance(found, Space) else found()


def _calibrations(calls: Sequence[Call]) -> list[Calibration]:
    """Calibrations and posts, from the inside out."""
    posts = [Calibration(after=_configured(call)) for call in _calls_of(calls, "post")]
    return [*map(_calibration, _calls_of(calls, "calibration")), *posts]


def _calibration(call: Call) -> Calibration:
    found = _configured(call)
    return found if isinstance(found, Calibration) else found()


def _times(update: Update, *, factor: jax.Array, **extra: Any) -> Update:
    return scale(update, by=factor)


def _calls_of(calls: Sequence[Call], kind: Kind) -> list[Call]:
    return [call for call in calls if call.step.kind == kind]


def _configured(call: Call) -> Callable[..., Any]:
    """The function of a step with its arguments bound."""
    arguments = {}
    for keyword, value in call.arguments:
        choices = call.step.arguments[keyword].accepts.choices
        arguments[keyword] = resolve(choices[value]) if choices else value
        if value == EACH:
            arguments[keyword] = None  # given in the call, as densities
    function = resolve(call.step.target)
    return partial(function, **arguments) if arguments else function
