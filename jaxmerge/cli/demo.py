"""``jaxmerge demo``: the experiment that ships with the repository."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import CommandError
from jaxmerge.cli.options import Json, Quiet
from jaxmerge.cli.runtime import start_jax

ROOT = Path(__file__).resolve().parents[2]  # of the repository, in a clone


def demo(
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for table, plot and adapter.")
    ] = Path("demo_out"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace the results of an earlier run.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge eight small adapters in many ways and score them.

    A small vision transformer and eight adapters of it come with the repository. Every
    merge is scored on held-out images of all eight tasks; a few minutes on two cores.
    """
    experiment = _experiment()
    results = out / experiment.RESULTS
    if results.exists() and not force:
        raise CommandError(f"{results} exists already; choose another --out or --force")
    start_jax()
    console = Console(as_json=as_json, quiet=quiet)
    experiment.run(out, console=console, force=force)


def _experiment() -> ModuleType:
    if not (ROOT / "experiments" / "digits8" / "demo.py").is_file():
        raise CommandError(
            f"the demo is not part of the installed package in {ROOT}; "
            "run it in a clone of the repository (make demo)"
        )
    sys.path.insert(0, str(ROOT))  # before any other package called experiments
    try:
        return importlib.import_module("experiments.digits8.demo")
    except ModuleNotFoundError as error:
        if error.name not in ("sklearn", "matplotlib"):
            raise
        raise CommandError(
            f"the demo needs {error.name}; install it with pip install 'jaxmerge[demo]'"
        ) from error
    finally:
        sys.path.remove(str(ROOT))
