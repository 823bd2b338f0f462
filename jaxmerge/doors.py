"""What functions are called with: T matrices, a stack or an update, and their keywords.

Extra keywords are data for other parts of a composition and are forwarded, so that a
function cannot know all of them. What it can know is a misspelling: a keyword that is
almost one of its own, or almost an input of `jaxmerge.types`, and neither.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxmerge.refusals import Refusal
from jaxmerge.types import AdapterStack, LowRank

INPUTS = ("key", "weights", "stats", "sample", "ranks", "size", "stack")
_INSIDE = ("factor", "merged", "threshold")  # inputs that pipelines add
_NEAR = 0.75  # of the letters are the same


def check_matrices(rule: Callable[..., Any], value: Any, extra: Any = None) -> None:
    """Refuses what is no [T, p, q], and a misspelt keyword, of a rule."""
    name = _name(rule)
    if isinstance(value, AdapterStack):
        raise Refusal(
            f"{name} is a rule: it takes T matrices [T, p, q], not a stack of "
            f"adapters; put it into a space, as in jaxmerge.core_space({name}) or, "
            f"with arguments bound, jaxmerge.core_space(partial({name}, ...))"
        )
    if len(_shape(value)) != 3:
        raise Refusal(
            f"{name} takes T matrices [T, p, q], got {_described(value)}; stack the "
            "matrices of all tasks on a first axis"
        )
    check_keywords(rule, extra or {})


def check_stack(merger: Callable[..., Any], value: Any, extra: Any = None) -> None:
    """Refuses what is no stack of T adapters, and a misspelt keyword, of a merger."""
    name = _name(merger)
    if not isinstance(value, AdapterStack):
        raise Refusal(
            f"{name} takes the adapters of one module, got {_described(value)}; make "
            "a stack by jaxmerge.stack_adapters, or give all modules to "
            f"jaxmerge.map_modules({name}, stacks)"
        )
    b, a, tasks = _shape(value.b), _shape(value.a), len(value.ranks)
    fits = len(b) == len(a) == 3 and b[0] == a[0] == tasks and b[2] == a[1]
    if not fits or max(value.ranks, default=0) > b[2]:
        raise Refusal(
            f"{name} takes b [T, m, R] and a [T, R, n] of T ranks up to R, got b "
            f"{b}, a {a} and ranks {value.ranks}; jaxmerge.stack_adapters makes them"
        )
    check_keywords(merger, extra or {})


def check_update(post: Callable[..., Any], value: Any, extra: Any = None) -> None:
    """Refuses what is no update of one module, and a misspelt keyword, of a post."""
    name = _name(post)
    if isinstance(value, AdapterStack):
        raise Refusal(
            f"{name} takes a merged update, not a stack of adapters; merge it first, "
            f"as in jaxmerge.then(jaxmerge.concat, {name})"
        )
    if isinstance(value, LowRank):
        b, a = _shape(value.b), _shape(value.a)
        if len(b) != 2 or len(a) != 2 or b[1] != a[0]:
            raise Refusal(f"{name} takes b [m, k] and a [k, n], got b {b} and a {a}")
    elif len(_shape(value)) != 2:
        raise Refusal(f"{name} takes an update [m, n], got {_described(value)}")
    check_keywords(post, extra or {})


def check_keywords(function: Callable[..., Any], extra: Mapping[str, Any]) -> None:
    """TypeError for a keyword that is almost one that the function knows."""
    own = declared(function)  # also what is bound: an input of a call goes before it
    for keyword in extra.keys() - {*INPUTS, *_INSIDE, *own}:
        _refuse_if_near(function, keyword, (*INPUTS, *own))


def check_inputs(
    function: Callable[..., Any], extra: Mapping[str, Any], allowed: Collection[str]
) -> None:
    """TypeError for an input of a call that nobody is known to declare.

    Args:
      function: gets the inputs.
      extra: what is given.
      allowed: further names, that the caller knows to be wanted by a part of it.
    """
    unknown = extra.keys() - {*INPUTS, *_INSIDE, *allowed}
    if not unknown:
        return
    known = {*INPUTS, *declared(function), *allowed}
    for keyword in sorted(unknown - known):
        _refuse_if_near(function, keyword, sorted(known))
        raise TypeError(
            f"{_name(function)} got an unknown input {keyword!r}; known are "
            f"{', '.join(INPUTS)}. Bind a hyper-parameter to its function by partial, "
            f"or say that a part of the composition takes it: extras=[{keyword!r}]"
        )


def declared(function: Callable[..., Any]) -> tuple[str, ...]:
    """Keywords that a function has in its own signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    plain = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in plain)


def _refuse_if_near(
    function: Callable[..., Any], keyword: str, known: Collection[str]
) -> None:
    near = difflib.get_close_matches(keyword, known, n=1, cutoff=_NEAR)
    if near:
        raise TypeError(
            f"{_name(function)} got an unexpected keyword {keyword!r}; did you mean "
            f"{near[0]!r}?"
        )


def _name(function: Callable[..., Any]) -> str:
    inner = function.func if isinstance(function, partial) else function
    return getattr(inner, "__name__", type(inner).__name__)


def _shape(value: Any) -> tuple[int, ...]:
    return np.shape(value) if not hasattr(value, "shape") else tuple(value.shape)


def _described(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"an array {tuple(value.shape)}"
    return f"a {type(value).__name__}"
