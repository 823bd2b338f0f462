"""From a sequence of steps to a function that merges a whole model."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from jaxmerge.mapping import map_modules, trim_whole_model
from jaxmerge.regression import merge_with_stats
from jaxmerge.spaces import in_space
from jaxmerge.spec.grammar import Call
from jaxmerge.spec.step import Kind
from jaxmerge.spec.steps import resolve
from jaxmerge.types import AdapterStack, Merger, Update
from jaxmerge.updates import scale, then


@cache
def merge_of(calls: tuple[Call, ...]) -> Callable[..., dict[str, Update]]:
    """The merge of some steps, made once so that its programs are compiled once.

    Returns:
      A function of (stacks, by, weights, key, and the options of `map_modules`) that
      gives ``by * merged`` for every module; ``by`` is traced. It takes ``stats`` or
      ``sample`` too where a step needs them.
    """
    if any(call.step.model for call in calls):
        return _merge_through_model(calls)
    if any(call.name == "trim_whole_model" for call in calls):
        return _whole_model_merge(calls)
    merger = _wrap(_merger(calls), calls)

    def merge_module(stack: AdapterStack, *, by: float, **extra: Any) -> Update:
        return scale(merger(stack, **extra), by=by)

    if any(call.step.statistics for call in calls):
        return partial(merge_with_stats, merge_module)
    return partial(map_modules, merge_module)


def _whole_model_merge(calls: tuple[Call, ...]) -> Callable[..., dict[str, Update]]:
    """The same where one threshold spans all modules, so that they cannot go alone.

    Merger transforms are taken apart: what they do to the adapters comes before the
    threshold is found, and they finish the merged updates afterwards.
    """
    (trimming,) = (call for call in calls if call.name == "trim_whole_model")
    space, rule = _space(calls), _rule(calls)
    prepare, finish = _prepare(calls), _finish(calls)

    def merge(stacks, *, by, weights, key, **devices):
        seen = map_modules(prepare, stacks, **devices) if prepare else stacks
        density = dict(trimming.arguments)["density"]
        updates = trim_whole_model(
            space, rule, seen, density=density, weights=weights, key=key, **devices
        )
        return map_modules(finish, stacks, updates, by=by, **devices)

    return merge


def _merge_through_model(calls: tuple[Call, ...]) -> Callable[..., dict[str, Update]]:
    """The same where the merger runs the model, with all modules in it."""
    merger, finish = _merger(calls), _finish(calls)

    def merge(stacks, *, sample, by, weights, key, **devices):
        updates = merger(
            sample.apply,
            sample.params,
            stacks,
            sample.batches,
            mask=sample.mask,
            base=sample.base,
            weights=weights,
            **devices,
        )
        return map_modules(finish, stacks, updates, by=by, **devices)

    return merge


def _finish(calls: tuple[Call, ...]) -> Callable[..., Update]:
    """What becomes of the merged update of a module: transforms, posts, scale."""
    wrapped = _wrap(_as_given, calls)

    def finish(stack: AdapterStack, update: Update, *, by: float) -> Update:
        return scale(wrapped(stack, merged=update), by=by)

    return finish


def _as_given(stack: AdapterStack, *, merged: Update, **extra: Any) -> Update:
    return merged


def _calls_of(calls: Sequence[Call], kind: Kind) -> list[Call]:
    return [call for call in calls if call.step.kind == kind]


def _configured(call: Call) -> Callable[..., Any]:
    """The function of a step with its arguments bound."""
    arguments = {}
    for keyword, value in call.arguments:
        choices = call.step.arguments[keyword].accepts.choices
        arguments[keyword] = resolve(choices[value]) if choices else value
    function = resolve(call.step.target)
    return partial(function, **arguments) if arguments else function


def _rule(calls):
    (first,) = _calls_of(calls, "rule")
    rule = _configured(first)
    for call in _calls_of(calls, "rule transform"):
        if call.name != "trim_whole_model":
            rule = _configured(call)(rule)
    return rule


def _space(calls):
    (space,) = _calls_of(calls, "space")
    return _configured(space)() if space.step.arguments else resolve(space.step.target)


def _merger(calls) -> Merger:
    direct = _calls_of(calls, "merger")
    return _configured(direct[0]) if direct else in_space(_space(calls), _rule(calls))


def _wrap(merger: Merger, calls) -> Merger:
    for call in _calls_of(calls, "merger transform"):
        merger = _configured(call)(merger)
    return then(merger, *map(_configured, _calls_of(calls, "post")))


def _prepare(calls):
    """What the merger transforms do to the adapters, the outermost first."""
    changes = [resolve(c.step.prepare) for c in _calls_of(calls, "merger transform")]
    if not changes:
        return None

    def prepare(stack: AdapterStack) -> AdapterStack:
        for change in reversed(changes):
            stack = change(stack)
        return stack

    return prepare
