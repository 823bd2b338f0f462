"""Pipelines with numbers to search for: ``ties(density={0.1:0.9})|core``.

In braces stands what an argument may be: a range ``{low:high}``, or choices ``{a, b}``.
Both are what Python's own grammar calls a dict and a set, so that a text is taken apart
as any pipeline is, and never evaluated.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from jaxmerge.refusals import Option, Refusal
from jaxmerge.spec.arguments import NUMBER
from jaxmerge.spec.grammar import (
    Call,
    PipelineError,
    as_text,
    given_arguments,
    read_name,
    read_value,
    syntax_of,
)
from jaxmerge.spec.kinds import EACH, Accepts, Argument
from jaxmerge.spec.pipeline import Pipeline, parse
from jaxmerge.spec.steps import STEPS

_DIGITS = 4  # of the numbers that a search tries


class Range(NamedTuple):
    """Numbers between two bounds, which are among them.

    Attributes:
      name: of what is searched.
      low: smallest.
      high: largest.
      whole: whole numbers only.
    """

    name: str
    low: float
    high: float
    whole: bool = False

    def at(self, share: float) -> float:
        """The number at a share of the way, in [0, 1].

        The way is one of equal ratios where the range is above 0, of equal differences
        otherwise. Numbers have four digits, so that they can be read and typed.

        >>> scale = Range("scale", 0.1, 10.0)
        >>> scale.at(0.0), scale.at(0.5), scale.at(0.6), scale.at(1.0)
        (0.1, 1.0, 1.585, 10.0)
        >>> Range("ridge", 0.0, 1.0).at(0.25), Range("rank", 4, 64, whole=True).at(0.5)
        (0.25, 16)
        """
        if self.low > 0:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + share * (self.high - self.low)
        value = float(f"{value:.{_DIGITS}g}")
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value


class Choices(NamedTuple):
    """Values of an argument, all of which are tried."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Varied:
    """A pipeline of which some arguments are in braces; made by `vary`.

    Attributes:
      calls: its steps, with some value in the place of each brace.
      places: number of the step and keyword of the argument of each brace.
      dimensions: what stands in the braces.
    """

    calls: tuple[Call, ...]
    places: tuple[tuple[int, str], ...]
    dimensions: tuple[Range | Choices, ...]

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Those dimensions that are ranges."""
        return tuple(d for d in self.dimensions if isinstance(d, Range))

    def __str__(self) -> str:
        """In one spelling, which `vary` reads again."""
        return self._with([_braces(dimension) for dimension in self.dimensions])

    def at(self, values: Sequence[float]) -> Pipeline:
        """The pipeline with these numbers in the place of its ranges.

        >>> vary("ties(density={0.1:0.9})|core|scale({0.1:2})").at([0.5, 1.0]).text
        'ties(density=0.5)|core|scale(1.0)'
        """
        return parse(self._with(values))

    def values_in(self, pipeline: Pipeline) -> tuple[Any, ...] | None:
        """What another pipeline has in the place of the braces; None if more differs.

        >>> vary("concat|scale({0.1:2})").values_in(parse("concat|scale(0.7)"))
        (0.7,)
        """
        if len(pipeline.calls) != len(self.calls):
            return None
        values = [dict(pipeline.calls[i].arguments).get(k) for i, k in self.places]
        return tuple(values) if self._with(values) == pipeline.text else None

    def chosen(self) -> Iterator["Varied"]:
        """This pipeline with every combination of its choices; ranges are left.

        >>> varied = vary("ties(density={0.2, 0.4})|core|scale({0.1:2})")
        >>> print(*varied.chosen(), sep=" ")
        ties(density=0.2)|core|scale({0.1:2.0}) ties(density=0.4)|core|scale({0.1:2.0})
        """
        options = [
            d.values if isinstance(d, Choices) else [_braces(d)]
            for d in self.dimensions
        ]
        for values in product(*options):
            yield vary(self._with(values))

    def _with(self, values: Sequence[Any]) -> str:
        new = dict(zip(self.places, values, strict=True))
        return as_text(
            [
                Call(x.name, tuple((k, new.get((i, k), v)) for k, v in x.arguments))
                for i, x in enumerate(self.calls)
            ]
        )


def vary(text: str) -> Varied:
    """Reads a pipeline of which arguments may stand in braces.

    Args:
      text: as for `jaxmerge.parse`; in the place of an argument also ``{low:high}`` or
        ``{a, b, ..}``.

    Returns:
      `Varied`, without dimensions where the text has no braces.

    Raises:
      PipelineError: as for `jaxmerge.parse`, for every value that the text stands for.

    >>> for dimension in vary("ties(density={0.1:0.9})|core|scale({1, 2})").dimensions:
    ...     print(dimension)
    Range(name='ties.density', low=0.1, high=0.9, whole=False)
    Choices(name='scale', values=(1.0, 2.0))
    >>> vary("ties(density={0:0.9})|core")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    jaxmerge.spec.grammar.PipelineError: ... expected a number in (0, 1], got 0
    """
    try:
        found = list(_braced(text))
    except PipelineError as error:
        raise PipelineError(f"pipeline {text!r}: {error}") from None
    line, parts, start = " ".join(text.split()).encode(), [], 0
    for _, node, dimension in found:  # offsets are those of bytes
        first = dimension.low if isinstance(dimension, Range) else dimension.values[0]
        parts += [line[start : node.col_offset].decode(), str(first)]
        start = node.end_col_offset or start
    parts.append(line[start:].decode())
    places, dimensions = [x[0] for x in found], [x[2] for x in found]
    return Varied(parse("".join(parts)).calls, tuple(places), tuple(dimensions))


def scaled(pipeline: Varied, low: float, high: float) -> Varied:
    """A pipeline without braces, searched over its last scale; added if it has none.

    >>> print(scaled(vary("knots_ties"), 0.1, 2.0))
    elect|trim_whole_model(density=0.2)|knots|scale({0.1:2.0})
    """
    inside, _ = without_scale(Pipeline(pipeline.calls))
    return vary(f"{inside.text}|scale({{{low}:{high}}})")


def without_scale(pipeline: Pipeline) -> tuple[Pipeline, float]:
    """A pipeline without the scales that it ends with, and their product.

    >>> inside, factor = without_scale(parse("concat|scale(2)|svc|scale(3)|scale(0.5)"))
    >>> inside.text, factor
    ('concat|scale(2.0)|svc', 1.5)
    """
    calls, factor = list(pipeline.calls), 1.0
    while len(calls) > 1 and calls[-1].step.multiplies:
        last = calls.pop()
        factor *= dict(last.arguments)[last.step.multiplies]
    return Pipeline(tuple(calls)), factor


def density_apart(pipeline: Pipeline) -> tuple[Pipeline, float | None]:
    """A pipeline that is given its density when it runs, and the density.

    Merges that differ in it alone are then one program. As it is, and None, where no
    step has a density that may be given, or several have one.

    >>> apart, density = density_apart(parse("elect|trim(density=0.2)|core"))
    >>> apart.text, density
    ('elect|trim(density=each)|core', 0.2)
    """
    found = [
        (place, value)
        for place, call in enumerate(pipeline.calls)
        for name, value in call.arguments
        if call.step.arguments[name].accepts.each
    ]
    if len(found) != 1 or found[0][1] == EACH:
        return pipeline, None
    (place, density), calls = found[0], list(pipeline.calls)
    arguments = dict(calls[place].arguments) | {"density": EACH}
    calls[place] = calls[place]._replace(arguments=tuple(arguments.items()))
    return Pipeline(tuple(calls)), density


def read_range(name: str, node: ast.expr, accepts: Accepts) -> Range | Choices:
    """What a dict or a set of Python's grammar says; PipelineError if nothing."""
    argument = Argument(accepts)
    if isinstance(node, ast.Set):
        where = f"{name} in braces"
        values = (read_value(where, argument, element) for element in node.elts)
        return Choices(name, tuple(dict.fromkeys(values)))
    if not isinstance(node, ast.Dict) or len(node.keys) != 1 or node.keys[0] is None:
        raise PipelineError(
            f"{name}: write a range as {{low:high}}, choices as {{a, b}}"
        )
    if accepts.convert not in (int, float):
        raise PipelineError(f"{name}: a range is for numbers; write choices, {{a, b}}")
    ends = (node.keys[0], node.values[0])
    low, high = (read_value(name, argument, end) for end in ends)
    if not low < high:
        raise PipelineError(
            f"{name}: a range rises, {{low:high}}; got {{{low}:{high}}}"
        )
    return Range(name, low, high, whole=accepts.convert is int)


def _braced(
    text: str,
) -> Iterator[tuple[tuple[int, str], ast.expr, Range | Choices]]:
    """Place, syntax and content of the braces of a text, from left to right."""
    for index, segment in enumerate(syntax_of(text)):
        if not isinstance(segment, ast.Call):
            continue
        step = read_name(segment)
        for keyword, node in given_arguments(step, segment).items():
            if isinstance(node, ast.Dict | ast.Set):
                known = STEPS[step]
                name = step if keyword == known.positional else f"{step}.{keyword}"
                accepts = known.arguments[keyword].accepts
                yield (index, keyword), node, read_range(name, node, accepts)


def _braces(dimension: Range | Choices) -> str:
    if isinstance(dimension, Range):
        return f"{{{dimension.low}:{dimension.high}}}"
    return f"{{{', '.join(map(str, dimension.values))}}}"


def vary_weights(text: str, tasks: Sequence[str]) -> tuple[float | Range, ...]:
    """Reads weights of tasks, each a number or a range.

    Args:
      text: one for each task, separated by commas, or one range for all of them.
      tasks: their names.

    Raises:
      Refusal: not as many as there are tasks, or neither numbers nor ranges.

    >>> vary_weights("1,{0.5:2}", ["cars", "dtd"])
    (1.0, Range(name='weight of dtd', low=0.5, high=2.0, whole=False))
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        nodes = node.elts if isinstance(node, ast.Tuple) else [node]
        if isinstance(node, ast.Dict):
            nodes = [node] * len(tasks)
        if len(nodes) != len(tasks):
            raise ValueError
        return tuple(map(_read_weight, tasks, nodes))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        why = f" ({error})" if isinstance(error, PipelineError) else ""
        raise Refusal(
            Option("weights", text, quoted=True),
            f": expected {len(tasks)} numbers or ranges {{low:high}}, separated by "
            f"commas, or one range for all tasks{why}",
        ) from None


def _read_weight(task: str, node: ast.expr) -> float | Range:
    if isinstance(node, ast.Dict):
        found = read_range(f"weight of {task}", node, NUMBER)
        assert isinstance(found, Range)
        return found
    return NUMBER.read(ast.literal_eval(node))
