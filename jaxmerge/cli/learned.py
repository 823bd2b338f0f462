"""What ``jaxmerge learn`` tells about a fit, while it runs and afterwards."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxmerge.cli.merge import written_lines

if TYPE_CHECKING:
    from jaxmerge.io import SaveReport
    from jaxmerge.jobs.fitting import Outcome
    from jaxmerge.jobs.learned_recipe import Recipe
    from jaxmerge.learning import Progress

_LOSSES = {"entropy": "entropy", "null-space": "null_space_ratio"}
_AVERAGED = 10  # steps at the start and at the end of the history


def title(recipe: "Recipe", tasks: Sequence[str], progress: "Progress") -> str:
    """The last step that was seen, for a progress bar."""
    objective, losses = (values[-1] for values in progress.history)
    pairs = zip(tasks, losses, strict=True)
    each = ", ".join(f"{task} {loss:.3f}" for task, loss in pairs)
    return f"objective {objective:.4f}, {recipe.loss} {each}"


def summary(
    recipe: "Recipe", tasks: Sequence[str], outcome: "Outcome"
) -> dict[str, Any]:
    """Objective and losses as JSON values, means over some steps."""
    losses = zip(tasks, outcome.anchors, outcome.history.losses.T, strict=True)
    return {
        "objective": _ends(outcome.history.objective),
        _LOSSES[recipe.loss]: {
            task: {"alone": alone, **_ends(values)} for task, alone, values in losses
        },
    }


def _ends(values: Any) -> dict[str, float]:
    """Means over the first and the last steps."""
    count = max(1, min(_AVERAGED, len(values) // 2))
    first, last = values[:count].mean(), values[-count:].mean()
    return {"first": float(first), "last": float(last)}


def lines(recipe: "Recipe", report: "SaveReport", document: dict[str, Any]):
    """The result for people."""
    adapters, modules = len(document["adapters"]), len(report.energy)
    yield f"{report.path}: {adapters} adapters merged, {modules} modules"
    on = " on Pico's directions" if recipe.pico else ""
    optimizer = document["recipe"]["optimizer"]
    steps = f"{recipe.steps} steps of {optimizer} at {recipe.rate:g}"
    yield f"  learned   {recipe.method}{on}, {steps}"
    ends = document["objective"]
    yield f"  objective {recipe.objective}, {ends['first']:.4f} to {ends['last']:.4f}"
    for task, found in document[_LOSSES[recipe.loss]].items():
        yield (
            f"  {recipe.loss:<9} {task}: {found['first']:.4f} to {found['last']:.4f}, "
            f"{found['alone']:.4f} with its own adapter alone"
        )
    yield from written_lines(report, document)
