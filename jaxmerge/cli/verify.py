"""``jaxmerge verify``: computes a merged folder again from its own record."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import CannotBeRepeated, VerificationFailed

if TYPE_CHECKING:
    from jaxmerge.jobs.verifying import Verified

_SHOWN = 20  # differences


@command()
def verify(
    console: Console,
    options: Options,
    *,
    folder: flags.Folder,
    inputs: Annotated[list[Path] | None, typer.Argument()] = None,
    stats: Path | None = None,
    base: Path | None = None,
    data: Path | None = None,
    tolerance: Annotated[float | None, typer.Option(min=0)] = None,
) -> None:
    """Compute a merged folder again and compare.

    Inputs, statistics and outputs are also checked against the SHA-256 in its record.
    Of a learned merge the coefficients are taken from phi.safetensors, the fit is not
    repeated. Exit code 1 if anything differs by more than rounding, and 2 if nothing
    does but a step of the merge is not jaxmerge's own, so that it cannot be repeated
    here.

    Args:
      inputs: Where the inputs are now, in their order, if they moved.
      stats: Where the statistics are now, if they moved.
      base: Where the base model is now, if the merge ran it.
      data: Where the inputs of the base model are now, if they moved.
      tolerance: Relative difference of a module that counts as rounding; by default
        1e-4, and more for half precision.
    """
    from jaxmerge.jobs import verifying

    found = verifying.verify(**options, progress=console.progress)
    console.show(found, _lines)
    if found.serious:
        raise VerificationFailed(
            f"{folder}: not verified, {len(found.serious)} differences from its record"
        )
    if found.missing_steps:
        raise CannotBeRepeated(
            f"{folder}: cannot be computed again, because {_named(found)} not part of "
            "jaxmerge; in Python register it (jaxmerge.register_step) and call "
            "jaxmerge.verify"
        )


def _lines(found: "Verified") -> Iterator[str]:
    serious, path = found.serious, found.path
    if found.missing_steps and not serious:
        inputs = len(found.record["inputs"])
        yield (
            f"{path}: NOT computed again, because {_named(found)} not part of "
            f"jaxmerge; the files of the folder and of {inputs} inputs have the "
            "SHA-256 of the record"
        )
    elif not found.differences:
        inputs = len(found.record["inputs"])
        yield f"{path}: verified, computed again from {inputs} inputs bit by bit"
    elif not serious:
        yield (
            f"{path}: verified up to rounding, relative difference at most "
            f"{found.largest:.3g}"
        )
    else:
        yield f"{path}: NOT verified"
    for difference in serious[:_SHOWN]:
        size = f" by {difference.size:.3g}" if difference.size is not None else ""
        yield f"  {difference.where} {difference.says}{size}"
    if len(serious) > _SHOWN:
        yield f"  and {len(serious) - _SHOWN} more (--json shows all)"
    if not found.recomputed and not found.missing_steps:
        yield "  not computed again, because the inputs are not those of the record"
    if found.read_by_fit:
        states = ", ".join(f"{k} {v}" for k, v in found.read_by_fit.items())
        yield f"  with the stored coefficients, the fit is not repeated ({states})"
    for note in found.notes:
        yield f"  {note}"
    versions = found.to_json()["versions"]
    then, now = versions["then"], versions["now"]
    if then != now and found.differences:
        yield f"  made with {_listed(then)}; this is {_listed(now)}"


def _named(found: "Verified") -> str:
    names = ", ".join(found.missing_steps)
    one = len(found.missing_steps) == 1
    return f"the step {names} is" if one else f"the steps {names} are"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
