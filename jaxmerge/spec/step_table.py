"""All steps of pipelines, as a table for people and programs."""

from typing import Any

from jaxmerge.spec.kinds import REQUIRED
from jaxmerge.spec.steps import STEPS


def usage(name: str) -> str:
    """A step with its arguments, those that must be given as ``..``.

    >>> usage("trim"), usage("concat")
    ('trim(density=..)', 'concat')
    """
    given = [
        f"{keyword}={'..' if argument.default is REQUIRED else argument.default}"
        for keyword, argument in STEPS[name].arguments.items()
        if argument.default is not None
    ]
    return f"{name}({', '.join(given)})" if given else name


def step_table() -> dict[str, dict[str, Any]]:
    """name -> what the step is and needs, as JSON values."""
    return {
        name: {
            "kind": step.kind,
            "usage": usage(name),
            "says": step.says,
            "arxiv": step.arxiv,
            "random": step.random,
            "statistics": step.statistics,
            "model": step.kind == "model merger",
            "learned": step.kind == "learned merger",
        }
        for name, step in STEPS.items()
    }
