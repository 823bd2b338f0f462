"""What functions are called with: T matrices, a stack or an update, and their keywords.

Extra keywords are data for other parts of a composition and are forwarded, so that a
function cannot know all of them. What it can know is a misspelling: a keyword that is
almost one of its own, or almost an input of `jaxmerge.types`, and neither.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxmerge.refusals import Refusal, nearest
from jaxmerge.streamed import described
from jaxmerge.types import AdapterStack, LowRank, RoutedCores, Router, Update

INPUTS = ("key", "weights", "densities", "stats", "sample", "ranks", "size", "stack")
_INSIDE = ("factor", "merged", "threshold")  # inputs that pipelines add


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


def check_merged(rule: Callable[..., Any], matrices: Any, merged: Any) -> None:
    """Refuses what a rule gave if it is not one matrix of the shape of those it got."""
    expected = _shape(matrices)[1:]
    if not hasattr(merged, "shape") or _shape(merged) != expected:
        raise Refusal(
            f"{_name(rule)} gave {_described(merged)}; a rule makes one matrix "
            f"{expected} of T matrices [T, p, q]"
        )


def check_stack(
    merger: Callable[..., Any] | str, value: Any, extra: Any = None
) -> None:
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
    if extra and not isinstance(merger, str):
        check_keywords(merger, extra)


def check_modules(function: Callable[..., Any] | str, value: Any) -> None:
    """Refuses what is not one entry for each module of a model."""
    if not isinstance(value, Mapping):
        raise Refusal(
            f"{_name(function)} takes all modules, module -> adapters, got "
            f"{_described(value)}; one module is {{'q_proj': stack}}"
        )


def check_model(merger: Callable[..., Any] | str, value: Any) -> None:
    """Refuses what is no stack of adapters for each module of a model."""
    check_modules(merger, value)
    for module, stack in described(value).items():
        if not isinstance(stack, AdapterStack):
            raise Refusal(
                f"{_name(merger)} takes module -> stack of adapters, got "
                f"{_described(stack)} for {module!r}; make stacks by "
                "jaxmerge.stack_adapters"
            )
        check_stack(merger, stack)


def check_adapters_of(post: Callable[..., Any], update: Update, stack: Any) -> None:
    """Refuses, for a post, adapters that cannot be those that were merged."""
    check_stack(post, stack)
    left, right = update if isinstance(update, LowRank) else (update, update)
    found = _shape(left)[0], _shape(right)[1]
    expected = _shape(stack.b)[1], _shape(stack.a)[2]
    if found != expected:
        raise Refusal(
            f"{_name(post)} got an update {found} and, as stack, adapters of a module "
            f"{expected}; give those that were merged"
        )


def check_shapes(function: Callable[..., Any], **arrays: tuple[Any, str]) -> None:
    """Refuses arrays of other axes than a function takes.

    Args:
      function: what is called.
      arrays: name of an argument -> the array, or None where it is not given, and its
        axes, such as "[T, n]" or "[..., n]". Equal letters are equal sizes.

    >>> import jax.numpy as jnp
    >>> check_shapes(check_shapes, x=(jnp.ones((2, 3)), "[..., n]"), y=(None, "[n]"))
    """
    sizes: dict[str, Any] = {}
    for value, axes in arrays.values():
        if value is not None and not _has_axes(value, axes, sizes):
            given = {k: v for k, v in arrays.items() if v[0] is not None}
            expected = ", ".join(f"{k} {axes}" for k, (_, axes) in given.items())
            found = ", ".join(_described(x) for x, _ in given.values())
            raise Refusal(f"{_name(function)} takes {expected}; got {found}")


def _has_axes(value: Any, axes: str, sizes: dict[str, Any]) -> bool:
    """Whether an array has these axes, and those of a letter the size that it has."""
    names = [name for name in axes.strip("[]").split(", ") if name]
    shape = None if isinstance(value, AdapterStack | Mapping) else _shape(value)
    if shape is None:
        return False
    if names[:1] == ["..."]:
        names, leading = names[1:], max(len(shape) - len(names) + 1, 0)
        if sizes.setdefault("...", shape[:leading]) != shape[:leading]:
            return False
        shape = shape[leading:]
    return len(shape) == len(names) and all(
        sizes.setdefault(name, size) == size
        for name, size in zip(names, shape, strict=True)
    )


def check_routed(function: Callable[..., Any], value: Any) -> None:
    """Refuses what is no routed cores whose arrays fit each other."""
    if not isinstance(value, RoutedCores):
        raise Refusal(
            f"{_name(function)} takes routed cores, got {_described(value)}; make them "
            "of a stack by jaxmerge.route_cores"
        )
    arrays = {
        "U": (value.basis.b, "[m, p]"),
        "V^T": (value.basis.a, "[q, n]"),
        "cores": (value.cores, "[T, p, q]"),
    }
    if isinstance(value.gates, Router):
        arrays["weights"] = (value.gates.weights, "[T, q]")
        arrays["biases"] = (value.gates.biases, "[T]")
    else:
        several = len(_shape(value.gates)) == 2
        arrays["gates"] = (value.gates, "[B, T]" if several else "[T]")
    check_shapes(function, **arrays)


def check_update(post: Callable[..., Any], value: Any, extra: Any = None) -> None:
    """Refuses what is no update of one module, and a misspelt keyword, of a post."""
    name = _name(post)
    if isinstance(value, AdapterStack):
        raise Refusal(
            f"{name} takes a merged update, not a stack of adapters; merge it first, "
            f"as in jaxmerge.then(jaxmerge.concat, {name})"
        )
    if isinstance(value, RoutedCores):
        raise Refusal(
            f"{name} takes an update, one matrix; routed cores are one for each token: "
            "fix their gates by jaxmerge.fixed_update, or run them as they are by "
            "jaxmerge.models.with_updates"
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
    strange = extra.keys() - {*INPUTS, *_INSIDE}
    if not strange:
        return
    own = declared(function)  # also what is bound: an input of a call goes before it
    for keyword in sorted(strange - {*own}):
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
    near = nearest(keyword, known)
    if near is not None:
        raise TypeError(
            f"{_name(function)} got an unexpected keyword {keyword!r}; did you mean "
            f"{near!r}?"
        )


def _name(function: Callable[..., Any] | str) -> str:
    if isinstance(function, str):
        return function
    inner = function.func if isinstance(function, partial) else function
    return getattr(inner, "__name__", type(inner).__name__)


def _shape(value: Any) -> tuple[int, ...]:
    return np.shape(value) if not hasattr(value, "shape") else tuple(value.shape)


def _described(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"an array {tuple(value.shape)}"
    return f"a {type(value).__name__}"
