"""What stands in the help of every command; the test suite runs the examples."""

import inspect
from collections.abc import Callable

EXAMPLES = {
    "": (
        "jaxmerge plan runs/cars runs/dtd runs/svhn",
        "jaxmerge merge runs/cars runs/dtd runs/svhn --pipeline tsv_m --out merged",
        "jaxmerge verify merged",
    ),
    "plan": ("jaxmerge plan runs/cars runs/dtd runs/svhn",),
    "inspect": (
        "jaxmerge inspect runs/cars runs/dtd runs/svhn",
        "jaxmerge inspect runs/cars runs/dtd runs/svhn --html report.html",
    ),
    "check": ("jaxmerge check runs/cars runs/dtd runs/svhn --base base --data data",),
    "methods": ("jaxmerge methods",),
    "merge": (
        "jaxmerge merge runs/cars runs/dtd runs/svhn -p tsv_m --out merged",
        'jaxmerge merge runs/cars runs/dtd runs/svhn -p "concat|pico" --out merged',
        "jaxmerge merge runs/cars runs/dtd runs/svhn -p knots_ties --out merged "
        "--dry-run",
    ),
    "collect": (
        "jaxmerge collect runs/cars runs/dtd runs/svhn --base base --data data "
        "--out stats",
    ),
    "learn": (
        "jaxmerge learn runs/cars runs/dtd runs/svhn --base base --data data "
        "-p tara_b --out learned",
    ),
    "verify": ("jaxmerge verify merged",),
    "evaluate": ("jaxmerge evaluate merged --base base --data data",),
    "convert": ("jaxmerge convert runs/cars runs/dtd runs/svhn --out checkpoint",),
}


def examples(command: str) -> str:
    """The examples of a command as the end of its help."""
    return "\n\n".join(["Examples:", *EXAMPLES[command]])


def paragraphs(command: Callable[..., None]) -> str:
    """What a command says of itself, a line for each paragraph."""
    parts = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)
