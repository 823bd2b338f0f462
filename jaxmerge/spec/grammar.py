"""From text to a checked sequence of steps.

    rule | rule transforms | space | calibrations | posts
    merger or learned merger       | calibrations | posts
    model merger                                  | posts

A whole-model transform stands right before the space: it compares the entries of all
modules before anything else happens to them. What runs the model takes the adapters as
they are, so that only posts may follow it.

A text is a chain of binary ors to Python's own parser, `ast`; it is taken apart as a
syntax tree and never evaluated.
"""

import ast
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from jaxmerge.refusals import Refusal, nearest
from jaxmerge.spec.foreign_names import counterpart
from jaxmerge.spec.kinds import EACH, REQUIRED, Argument, Kind, Step
from jaxmerge.spec.presets import PRESETS
from jaxmerge.spec.steps import ALIASES, STEPS, names_of

_LONGEST = 2000  # characters
_NEXT: dict[Kind | None, tuple[Kind, ...]] = {
    None: ("rule", "merger", "model merger", "learned merger"),
    "rule": ("rule transform", "whole-model transform", "space"),
    "rule transform": ("rule transform", "whole-model transform", "space"),
    "whole-model transform": ("space",),
    "space": ("calibration", "post"),
    "merger": ("calibration", "post"),
    "model merger": ("post",),
    "learned merger": ("calibration", "post"),
    "calibration": ("calibration", "post"),
    "post": ("post",),
}
_WHY: dict[Kind, str] = {
    "whole-model transform": (
        ", which must stand right before the space: it compares entries of all modules "
        "before anything else happens to them"
    ),
    "model merger": ", which runs the adapters in the model as they are",
}
_PLACE = {kind: place for place, kind in enumerate(_NEXT)}


class PipelineError(Refusal):
    """A pipeline that is not well formed, or that cannot run on what it is given."""


class Call(NamedTuple):
    """One step with all its arguments, defaults included."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    @property
    def step(self) -> Step:
        step = STEPS.get(self.name)
        if step is None or step.arguments.keys() != dict(self.arguments).keys():
            raise PipelineError(
                f"the step {self.name!r} is not what it was when this pipeline was "
                "read; read its text again by jaxmerge.parse"
            )
        return step

    def __str__(self) -> str:
        given = {
            keyword: value
            for keyword, value in self.arguments
            if value != self.step.arguments[keyword].default
        }
        if not given:
            return self.name
        if list(given) == [self.step.positional]:
            return f"{self.name}({given[self.step.positional]})"
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in given.items())})"


def as_text(calls: Sequence[Call]) -> str:
    """A sequence of steps in its one spelling: defaults left out, names spelled out."""
    return "|".join(map(str, calls))


def read_calls(text: str) -> tuple[Call, ...]:
    """The steps of a text; PipelineError, without the text itself, if it is not one."""
    segments = syntax_of(text)
    alone = segments[0].id if isinstance(segments[0], ast.Name) else ""
    if len(segments) == 1 and alone in PRESETS:
        return read_calls(PRESETS[alone].pipeline)
    calls = tuple(_read_call(segment) for segment in segments)
    problem = _order_problem(calls)
    if problem:
        ordered = sorted(calls, key=lambda call: _PLACE[call.step.kind])
        if not _order_problem(ordered):
            problem += f"; did you mean {as_text(ordered)!r}?"
        raise PipelineError(problem)
    return calls


def syntax_of(text: Any) -> list[ast.expr]:
    """The steps of a text as syntax trees."""
    if not isinstance(text, str):
        raise PipelineError(f"expected text, got {type(text).__name__}")
    if len(text) > _LONGEST or "#" in text:
        raise PipelineError(f"no comments, and at most {_LONGEST} characters")
    try:
        node = ast.parse(" ".join(text.split()), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise PipelineError(
            "cannot be read; write steps like name or name(argument=value), "
            "separated by |"
        ) from None
    segments = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        segments.append(node.right)
        node = node.left
    return [node, *reversed(segments)]


def _read_call(node: ast.expr) -> Call:
    name = read_name(node)
    step, given = STEPS[name], given_arguments(name, node)
    arguments = {}
    for keyword, argument in step.arguments.items():
        if keyword in given:
            value = read_value(f"{name}({keyword}=..)", argument, given[keyword])
        elif argument.default is REQUIRED:
            raise PipelineError(
                f"{name} needs {keyword}: write {_usage(name)}{_as_method(name)}"
            )
        else:
            value = argument.default
        arguments[keyword] = value
    problem = step.problem(arguments)
    if problem:
        raise PipelineError(f"{name}: {problem}")
    return Call(name, tuple(arguments.items()))


def read_name(node: ast.expr) -> str:
    known = [*STEPS, *ALIASES, *PRESETS]
    called = node.func if isinstance(node, ast.Call) else node
    if not isinstance(called, ast.Name):
        written = ast.unparse(node)
        raise PipelineError(
            f"{written!r} is not a step; write name or name(argument=value)"
            + (counterpart(written) or _nearest(written.replace(" - ", "_"), known))
        )
    name = ALIASES.get(called.id, called.id)
    if name in STEPS:
        return name
    if name in PRESETS:
        raise PipelineError(
            f"{name} is a complete method; give it alone, or change what it stands "
            f"for: {PRESETS[name].pipeline}"
        )
    meant = counterpart(name) or _nearest(name, known) or "; see jaxmerge methods"
    raise PipelineError(f"unknown step {name!r}{meant}")


def given_arguments(name: str, node: ast.expr) -> dict[str, ast.expr]:
    """The arguments that a call is written with, by keyword."""
    if not isinstance(node, ast.Call):
        return {}
    step, given = STEPS[name], {}
    if len(node.args) > bool(step.positional):
        raise PipelineError(f"{name} takes its arguments by name: write {_usage(name)}")
    pairs = [(step.positional, value) for value in node.args]
    pairs += [(keyword.arg, keyword.value) for keyword in node.keywords]
    for keyword, value in pairs:
        if keyword not in step.arguments:
            hint = _nearest(keyword, step.arguments) if keyword else ""
            raise PipelineError(
                f"{name} has no argument {keyword or '**'!r}"
                f"{hint or f'; write {_usage(name)}'}"
            )
        if keyword in given:
            raise PipelineError(f"{name}: {keyword} is given twice")
        given[keyword] = value
    return given


def read_value(where: str, argument: Argument, node: ast.expr) -> Any:
    accepts, written = argument.accepts, ast.unparse(node)
    if accepts.choices:
        if written not in accepts.choices:
            raise PipelineError(
                f"{where}: expected {accepts.says}, got {written}"
                + _nearest(written, accepts.choices)
            )
        return written
    if accepts.each and written == EACH:
        return EACH
    try:
        return accepts.read(ast.literal_eval(node))
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise PipelineError(
            f"{where}: expected {accepts.says}, got {written}"
        ) from None


def _order_problem(calls: Sequence[Call]) -> str:
    """What is wrong with the order of the steps, "" if nothing."""
    before: Call | None = None
    for call in calls:
        kinds = _NEXT[before.step.kind if before else None]
        if call.step.kind not in kinds:
            place = "cannot come first"
            if before:
                why = _WHY.get(before.step.kind, "")
                place = f"cannot follow {before.name!r}{why}"
            return f"{_described(call)} {place}; expected {_choices(kinds)}"
        before = call
    kinds = _NEXT[calls[-1].step.kind]
    if "space" in kinds:
        return f"ends with {_described(calls[-1])}; expected {_choices(kinds)}"
    return ""


def _described(call: Call) -> str:
    return f"{call.name!r} (a {call.step.kind})"


def _choices(kinds: Sequence[Kind]) -> str:
    return " or ".join(f"a {kind} ({', '.join(names_of(kind))})" for kind in kinds)


def _usage(name: str) -> str:
    step = STEPS[name]
    if step.positional:
        return f"{name}(..)"
    if not step.arguments:
        return f"{name} without arguments"
    return f"{name}({', '.join(f'{keyword}=..' for keyword in step.arguments)})"


def _as_method(name: str) -> str:
    """Where a step and a complete method share a name: the latter, to be changed."""
    if name not in PRESETS:
        return ""
    return f"; the complete method {name!r} stands for {PRESETS[name].pipeline}"


def _nearest(name: str, known: Collection[str]) -> str:
    found = nearest(name.lower(), known)
    return "" if found is None else f"; did you mean {found!r}?"
