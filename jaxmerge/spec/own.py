"""Steps of a user's own: a function becomes a name that pipelines of text know.

They live in the process that registers them. A record names them with the function and
a digest of its source, so that `jaxmerge.verify` can say what it cannot repeat.
"""

import contextlib
import hashlib
import inspect
import keyword
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args, get_origin

from jaxmerge.spec.arguments import FLAG, NUMBER, WHOLE
from jaxmerge.spec.grammar import PipelineError
from jaxmerge.spec.kinds import REQUIRED, Accepts, Argument, Kind, Step
from jaxmerge.spec.presets import PRESETS
from jaxmerge.spec.steps import ALIASES, STEPS

KINDS = ("rule", "rule transform", "space", "merger", "calibration", "post")
_FORWARDING = ("rule", "merger", "post")  # they are given inputs of others too
_ACCEPTS: dict[type, Accepts] = {  # a number that may be whole is a number
    bool: FLAG,
    float: NUMBER,
    int: WHOLE,
}
_UNIONS = (types.UnionType, typing.Union)  # pyright: ignore[reportDeprecated]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}")


def register_step(
    name: str,
    function: Any,
    *,
    kind: Kind,
    says: str = "",
    arxiv: str = "",
    random: bool = False,
    statistics: bool = False,
    linear: bool = False,
    averages: bool = False,
    dense: bool | None = None,
    flat: bool = False,
    equal_ranks: bool = False,
    homogeneous: bool = False,
    replace: bool = False,
) -> None:
    """Makes a function of your own a step of pipelines of text, in this process.

    Its keyword-only arguments that are no inputs (``key``, ``weights``, ``stats``,
    ``stack``, ``ranks``, ``size``) become the arguments of the step, with their types
    (float, int or bool) and defaults. Everything else that a pipeline has to know is
    told here; what is not told is taken as not so, the careful choice.

    Args:
      name: a name of Python that no step or method has.
      function: what the kind says (`jaxmerge.types`): a rule, a merger or a post takes
        ``**extra``; a rule transform makes a rule of a rule; a space is a `Space` or a
        function that makes one; a calibration is a `Calibration`.
      kind: rule, rule transform, space, merger, calibration or post.
      says: what it does, in a few words.
      arxiv: where it is from.
      random: it needs a key.
      statistics: a merger that needs statistics of inputs.
      linear: the merge stays a weighted sum of the updates, so that biases are summed.
      averages: that sum is divided by the number of tasks.
      dense: updates are dense from here on (True) or of low rank again (False).
      flat: all singular values of the merge are equal.
      equal_ranks: works only where all adapters of a module have one rank.
      homogeneous: multiplies its result by c when all B, or all A, are multiplied by c,
        so that very small and very large adapters may be merged at an ordinary scale.
      replace: takes the place of an own step of that name.

    Raises:
      PipelineError: a name that exists or that no text can have, another kind, or a
        function that does not fit its kind.

    >>> import jax.numpy as jnp
    >>> from jaxmerge.spec import STEPS, parse
    >>> def median(matrices, *, shrink: float = 1.0, **extra):
    ...     return shrink * jnp.median(matrices, axis=0)
    >>> register_step("median", median, kind="rule", homogeneous=True)
    >>> parse("median(shrink=0.5)|core|scale(1)").text
    'median(shrink=0.5)|core|scale(1.0)'
    >>> del STEPS["median"]
    """
    _check_name(name, replace=replace)
    if kind not in KINDS:
        raise PipelineError(
            f"register_step({name!r}): kind {kind!r}: expected one of "
            f"{', '.join(KINDS)}; what works on whole models is called in Python"
        )
    arguments, inputs = _signature(name, function, kind)
    facts = {"random": ("key", random), "statistics": ("stats", statistics)}
    for fact, (needed, told) in facts.items():
        if needed in inputs and not told:
            raise PipelineError(
                f"register_step({name!r}): the function takes {needed}; say {fact}=True"
            )
    if statistics and kind != "merger":
        raise PipelineError(
            f"register_step({name!r}): statistics of inputs are given to mergers only"
        )
    STEPS[name] = Step(
        kind,
        function,
        says or "a step of your own",
        arxiv,
        arguments,
        random=random,
        linear=linear,
        averages=averages,
        dense=dense,
        flat=flat,
        equal_ranks=equal_ranks,
        statistics=statistics,
        homogeneous=homogeneous,
        weighted=kind != "merger" or "weights" in inputs,
        own=_described(function, kind),
    )
    forget_built()


def forget_built() -> None:
    """Pipelines are read and built again, as names may mean other functions now."""
    from jaxmerge.spec.build import learned_merger, model_merger
    from jaxmerge.spec.pipeline import parse

    for built in (parse, model_merger, learned_merger):
        built.cache_clear()


def _check_name(name: Any, *, replace: bool) -> None:
    if (
        not isinstance(name, str)
        or not _NAME.fullmatch(name)
        or keyword.iskeyword(name)
    ):
        raise PipelineError(
            f"register_step({name!r}): expected a name of Python in ASCII, of at most "
            "60 characters, that is no keyword"
        )
    known = STEPS.get(name)
    if known is not None and known.own is not None:
        if not replace:
            raise PipelineError(
                f"register_step({name!r}): the name is registered already, for "
                f"{' and '.join(known.own['functions'])}; choose another, or give "
                "replace=True"
            )
    elif known is not None or name in ALIASES or name in PRESETS:
        raise PipelineError(
            f"register_step({name!r}): jaxmerge has a step or method of that name; "
            "choose another"
        )


def _signature(
    name: str, function: Any, kind: Kind
) -> tuple[dict[str, Argument], frozenset[str]]:
    """The arguments of a step, and the inputs that its function declares."""
    from jaxmerge.types import Calibration, Space

    if kind == "calibration" or (kind == "space" and isinstance(function, Space)):
        expected = Calibration if kind == "calibration" else Space
        if not isinstance(function, expected):
            raise PipelineError(
                f"register_step({name!r}): expected a jaxmerge.{expected.__name__}, "
                f"got a {type(function).__name__}"
            )
        return {}, frozenset()
    if isinstance(function, partial) or not callable(function):
        raise PipelineError(
            f"register_step({name!r}): expected a function, got a "
            f"{type(function).__name__}; its keyword-only arguments are given in the "
            "text of a pipeline"
        )
    return _arguments(name, function, kind)


def _arguments(
    name: str, function: Callable[..., Any], kind: Kind
) -> tuple[dict[str, Argument], frozenset[str]]:
    from jaxmerge.doors import INPUTS

    parameters = _parameters(name, function)
    data = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    wanted = 0 if kind == "space" else 1
    forwards = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if len(data) != wanted or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise PipelineError(
            f"register_step({name!r}): the function of a {kind} takes {wanted} argument"
            f"{'' if wanted == 1 else 's'} by position; write its hyper-parameters "
            "behind a *"
        )
    if kind in _FORWARDING and not forwards:
        raise PipelineError(
            f"register_step({name!r}): the function of a {kind} takes **extra, what a "
            "call gives to other parts"
        )
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    found = {p.name: _argument(name, p) for p in own if p.name not in INPUTS}
    return found, frozenset(p.name for p in own if p.name in INPUTS)


def _parameters(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise PipelineError(
            f"register_step({name!r}): the function has no signature to be read"
        ) from None
    with contextlib.suppress(Exception):  # an annotation as text may be anything
        signature = inspect.signature(function, eval_str=True)
    return list(signature.parameters.values())


def _argument(name: str, parameter: inspect.Parameter) -> Argument:
    default = parameter.default
    required = default is parameter.empty
    told = list(_types_of(parameter.annotation))
    if not required and default is not None:
        told.append(type(default))
    accepts = next((found for kind, found in _ACCEPTS.items() if kind in told), None)
    if accepts is None:
        raise PipelineError(
            f"register_step({name!r}): what is {parameter.name}? Annotate it as float, "
            "int or bool, or call the function in Python"
        )
    if required or default is None:
        return Argument(accepts, REQUIRED if required else None)
    try:
        return Argument(accepts, accepts.read(default))
    except ValueError as error:
        raise PipelineError(
            f"register_step({name!r}): the default of {parameter.name}: {error}"
        ) from None


def _types_of(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in _UNIONS:
        for part in get_args(annotation):
            yield from _types_of(part)
    else:
        yield annotation


def _described(function: Any, kind: Kind) -> dict[str, Any]:
    """What a record says of a step: its functions by name, a digest of their source."""
    parts = [p for p in function if p] if isinstance(function, tuple) else [function]
    inner = [inspect.unwrap(p.func if isinstance(p, partial) else p) for p in parts]
    digest = hashlib.sha256()
    known = True
    for part in inner:
        try:
            digest.update(textwrap.dedent(inspect.getsource(part)).encode())
        except (OSError, TypeError):
            known = False
    return {
        "kind": kind,
        "functions": [_place(part) for part in inner],
        "sha256": digest.hexdigest() if known else None,
    }


def _place(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
