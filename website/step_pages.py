"""A page for each step of pipelines, of what the package says about it.

The table of steps says what it does, what it is given and where it is from; its
docstring has the formula, its cost and where it deviates; docs/choosing.md says when to
use it; named pipelines and a picture are made from the code itself.
"""

import re

from names import ROOT
from pictures import PICTURED

from jaxmerge.spec import PRESETS, STEPS
from jaxmerge.spec.kinds import REQUIRED, Argument, Step

KINDS = tuple(dict.fromkeys(step.kind for step in STEPS.values()))
_SPACES = "jaxmerge.mergers.spaces"
DOCUMENTED = {  # steps that are data: what they do is said by functions
    "full": ("jaxmerge.full", f"{_SPACES}.project_full"),
    "core": ("jaxmerge.core", f"{_SPACES}.project_core"),
    "knots": ("jaxmerge.knots", f"{_SPACES}.project_knots"),
    "knots_unscaled": ("jaxmerge.knots_unscaled", f"{_SPACES}.project_knots_unscaled"),
    "compressed": ("jaxmerge.compressed", "jaxmerge.mergers.ctm.project_compressed"),
    "pico": ("jaxmerge.pico", "jaxmerge.restore_norm"),
    "balanced": ("jaxmerge.balanced", "jaxmerge.balance"),
    "soft_threshold": ("jaxmerge.soft_threshold", "jaxmerge.shrink_updates"),
}


def choices() -> dict[str, tuple[str, str]]:
    """Name of a step -> when to use it and its cost, from docs/choosing.md."""
    page = (ROOT / "docs/choosing.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", page, re.M)
    return {name: (when, cost) for name, when, cost in rows}


def page(name: str) -> str:
    """The Markdown of one step."""
    step = STEPS[name]
    when, cost = choices()[name]
    parts = [
        f"# {name}",
        f"{_sentence(step.says)}",
        _facts(name, step),
        f"## When to use it\n\n{_sentence(when)}",
        f"## What it costs\n\n{_sentence(cost)}\n\n"
        "For one module of size m x n, T adapters of rank R at most and K together; "
        "a rule works on matrices p x q ([all costs](../choosing.md#every-step)).",
        _arguments(step),
        _picture(name),
        "## Definition\n\n" + "\n\n".join(f"::: {path}" for path in documented(name)),
        _presets(name),
        "Where official codes give something else is listed on the page "
        "[deviations](../deviations.md).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def documented(name: str) -> tuple[str, ...]:
    """Full names of the functions that the page of a step documents."""
    return DOCUMENTED.get(name, (f"jaxmerge.{name}",))


def overview() -> str:
    """The page that lists all steps."""
    lines = ["# All steps", "What pipelines are made of ([grammar](../methods.md))."]
    for kind in KINDS:
        names = [name for name, step in STEPS.items() if step.kind == kind]
        rows = [f"* [`{name}`]({name}.md): {STEPS[name].says}" for name in names]
        lines.append(f"## {kind.capitalize()}")
        lines.append("\n".join(rows))
    return "\n\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    first = text.partition(" ")[0]
    return f"{text[:1].upper() if first.isalpha() else text[:1]}{text[1:]}."


def _facts(name: str, step: Step) -> str:
    source = f"[{step.arxiv}](https://arxiv.org/abs/{step.arxiv})"
    facts = {
        "kind": step.kind,
        "source": f"arXiv {source}" if step.arxiv else "",
        "needs": ", ".join(
            need
            for need, needed in {
                "a seed": step.random,
                "statistics of inputs": step.statistics,
                "adapters of one rank": step.equal_ranks,
                "base and unlabeled inputs": step.kind
                in ("model merger", "learned merger"),
            }.items()
            if needed
        ),
        "gives": {True: "a dense update", False: "a low-rank update"}.get(step.dense),
    }
    rows = [f"| {title} | {fact} |" for title, fact in facts.items() if fact]
    return "\n".join(["| | |", "|---|---|", *rows])


def _arguments(step: Step) -> str:
    if not step.arguments:
        return ""
    rows = [
        f"| `{name}` | {_in_cell(argument.accepts.says)} | {_default(argument)} |"
        for name, argument in step.arguments.items()
    ]
    heading = ["| argument | is | default |", "|---|---|---|"]
    return "## In a pipeline\n\n" + "\n".join([*heading, *rows])


def _default(argument: Argument) -> str:
    if argument.default is REQUIRED:
        return "required"
    return f"`{argument.default}`"


def _picture(name: str) -> str:
    if name not in PICTURED:
        return ""
    pipeline = PICTURED[name]
    return (
        "## What it does to two small adapters\n\n"
        f"![Two updates and their merge by {pipeline}]({name}.svg)\n\n"
        f"Two updates of 12 x 12 and rank 3, and their merge by `{pipeline}`. Blue is "
        "negative, red positive, on one scale."
    )


def _presets(name: str) -> str:
    used = re.compile(rf"\b{name}\b")
    rows = [
        f"| `{title}` | `{_in_cell(preset.pipeline)}` | {preset.source} |"
        for title, preset in PRESETS.items()
        if used.search(preset.pipeline)
    ]
    if not rows:
        return ""
    heading = ["| name | pipeline | numbers from |", "|---|---|---|"]
    return "## Named pipelines with it\n\n" + "\n".join([*heading, *rows])


def _in_cell(text: str) -> str:
    """A bar that is no border of a cell."""
    return text.replace("|", "\\|")
