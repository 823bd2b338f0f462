"""What all commands are: options in, for one function of the library, a result out."""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

from jaxmerge.cli import flags
from jaxmerge.cli.console import Console
from jaxmerge.cli.read_flags import Reading, as_tables
from jaxmerge.cli.signature import flags_of, said_by
from jaxmerge.runtime import start_jax

Options = dict[str, Any]


def _console(*, quiet: flags.Quiet = False, as_json: flags.Json = False) -> Console:
    return Console(quiet=quiet, as_json=as_json)


def command(
    *,
    reads: Reading | None = None,
    alone: Collection[str] = (),
    starts_jax: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of a function.

    What the function takes by name are the options of the command, with the help that
    its docstring gives (`flags_of`). Before them it is given the console, and what to
    call a function of the library with: all options by their names but those that
    nobody gave, which are left to that function.

    Args:
      reads: how the command reads adapters, if it does: further options for the
        function of the library.
      alone: options of the command that the function of the library does not take.
      starts_jax: whether JAX is there before the function is called.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own, printing = flags_of(function), flags_of(_console)
        reading = [] if reads is None else reads.flags(beside=own)
        ours = {"distributed", *alone}

        @functools.wraps(function)
        def run(**given: Any) -> None:
            console = _console(**{flag.name: given.pop(flag.name) for flag in printing})
            options = {
                name: value
                for name, value in given.items()
                if name not in ours and value is not None and value != []
            }
            options = as_tables(options)
            if starts_jax:
                start_jax(distributed=given.get("distributed", False))
            function(console, options, **{flag.name: given[flag.name] for flag in own})

        signed: Any = run  # typer reads these three
        parameters = [*own, *printing, *reading]
        signed.__signature__ = inspect.Signature(parameters)
        signed.__annotations__ = {p.name: p.annotation for p in parameters}
        signed.__doc__ = said_by(function).about
        return run

    return decorate
