"""What a search is asked to move in, and in which order, read from options."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxmerge.io import Adapters
from jaxmerge.refusals import Option, Refusal
from jaxmerge.spec import Pipeline, check_weights, parse
from jaxmerge.spec.checks import check_ranks
from jaxmerge.spec.varied import Range, Varied, scaled, vary, vary_weights
from jaxmerge.tuning.families import Family, Point, mask_pairs
from jaxmerge.tuning.searches import (
    GENERATIONS,
    Search,
    check_evolvable,
    evolve,
    grid,
    line,
)

SearchName = Literal["line", "grid", "cma"]
SCALES = (0.05, 5.0)  # of pipelines without braces
_SEARCHES = ("line", "grid", "cma")
_NEAR = 0.02  # of the way through a range: its end


@dataclass(frozen=True)
class SearchSpace:
    """Pipelines with ranges, weights and masks, and how they are searched.

    Attributes:
      pipelines: without choices.
      weights: a number or a range for each task; None for ones.
      masks: largest share of all pairs of block and task that is left out; 0 for none.
      search: "line", "grid" or "cma".
      points: of each range that "line" begins with, and of which a "grid" is made.
      refinements: steps of golden section of "line".
      population: points of a generation of "cma".
      endless: whether "cma" goes on until its budget is spent.
      seed: of "cma".
    """

    pipelines: tuple[Varied, ...]
    weights: tuple[float | Range, ...] | None
    masks: float
    search: SearchName
    points: int
    refinements: int
    population: int | None
    endless: bool
    seed: int

    def __post_init__(self) -> None:
        if self.search not in _SEARCHES:
            raise Refusal(
                Option("search", self.search, quoted=True),
                f": expected one of {', '.join(_SEARCHES)}",
            )
        if not 0 <= self.masks <= 1:
            shown = Option("masks", str(self.masks))
            raise Refusal(shown, ": expected a share in [0, 1]")
        if self.masks and self.search != "cma":
            raise Refusal(
                *(Option("masks"), " are searched by CMA-ES alone; give "),
                Option("search", "cma", quoted=True),
            )
        least = {"points": 2, "refinements": 0, "population": 2}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                shown = Option(name, str(value))
                raise Refusal(shown, f": expected at least {smallest}")

    @property
    def random(self) -> bool:
        """Whether a pipeline draws at random."""
        return any(Pipeline(x.calls).random for x in self.pipelines)

    def middle(self, pipeline: Varied) -> Pipeline:
        """A pipeline of the search, to be checked before any work."""
        return pipeline.at([r.at(0.5) for r in pipeline.ranges])

    def families(self, adapters: Adapters) -> list[Family]:
        """The space for some adapters.

        Raises:
          Refusal: a pipeline that cannot merge them; nothing that CMA-ES can search.
        """
        ranks = {module: stack.ranks for module, stack in adapters.stacks.items()}
        pairs = mask_pairs(adapters.stacks, adapters.names) if self.masks else ()
        made = [Family(x, self.weights, pairs, self.masks) for x in self.pipelines]
        for family in made:
            check_ranks(self.middle(family.pipeline), ranks)
            if self.search == "cma":
                check_evolvable(family)
        return made

    def searches(self, families: Sequence[Family]) -> list[Search]:
        """A search of each family."""
        if self.search == "grid":
            return [grid(family, points=self.points) for family in families]
        if self.search == "line":
            how = {"points": self.points, "refinements": self.refinements}
            return [line(family, **how) for family in families]
        ends = None if self.endless else GENERATIONS
        made = {"population": self.population, "generations": ends}
        return [
            evolve(family, seed=self.seed + index, **made)
            for index, family in enumerate(families)
        ]

    def expected(self, families: Sequence[Family]) -> int:
        """About how many merges will be tried, where no budget ends the search."""
        ranges = [len(family.ranges) for family in families]
        if self.search == "grid":
            return sum(self.points**count for count in ranges)
        if self.search == "line":
            each = self.points + self.refinements + 1
            return sum(each * (count if count < 2 else 2 * count) for count in ranges)
        numbers = [len(f.ranges) + len(f.pairs) for f in families]
        sizes = [self.population or 4 + int(3 * math.log(n)) for n in numbers]
        return GENERATIONS * sum(sizes)

    def to_record(self) -> dict[str, Any]:
        """As JSON values: all that the order of the points depends on."""
        weights = self.weights
        shown = None if weights is None else [str(weight) for weight in weights]
        how: dict[str, Any] = {"search": self.search}
        if self.search != "cma":
            how["points"] = self.points
        if self.search == "line":
            how["refinements"] = self.refinements
        if self.search == "cma":
            how |= {"population": self.population, "search_seed": self.seed}
        pipelines = [str(pipeline) for pipeline in self.pipelines]
        return {"pipelines": pipelines, "weights": shown, "masks": self.masks, **how}


def read_space(
    pipeline: str | Sequence[str],
    *,
    weights: str | Sequence[float] | None,
    masks: float,
    tasks: Sequence[str],
    search: SearchName,
    scale: tuple[float, float] = SCALES,
    **how: Any,
) -> SearchSpace:
    """Reads what is searched, and refuses what cannot be, before any work.

    Where nothing at all is varied in a pipeline, no weight and no mask, it is its last
    scale, between the two numbers ``scale``.
    """
    texts = [pipeline] if isinstance(pipeline, str) else list(pipeline)
    if not texts:
        raise Refusal("no pipeline to tune; give ", Option("pipeline"))
    read: tuple[float | Range, ...] | None = None
    if isinstance(weights, str):
        read = vary_weights(weights, tasks)
    elif weights is not None:
        read = tuple(check_weights(weights, len(tasks)).tolist())
    moving = bool(masks) or any(isinstance(w, Range) for w in read or ())
    varied = [vary(text) for text in texts]
    varied = [x if x.dimensions or moving else scaled(x, *scale) for x in varied]
    return SearchSpace(
        pipelines=tuple(y for x in varied for y in x.chosen()),
        weights=read,
        masks=masks,
        search=search,
        **how,
    )


def ends_met(families: Sequence[Family], best: Point) -> list[str]:
    """Notes on numbers of the best merge that lie at an end of their range."""
    for family in families:
        values = family.pipeline.values_in(parse(best.pipeline))
        if values is not None:
            pairs = zip(family.pipeline.ranges, values, strict=True)
            return [
                f"the best {r.name}, {value:g}, is at the end of its range, "
                f"{r.low:g} to {r.high:g}; a wider one may hold a better one"
                for r, value in pairs
                if not r.at(_NEAR) < value < r.at(1 - _NEAR)
            ]
    return []
