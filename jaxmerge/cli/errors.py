"""How commands end: exit codes, and errors as one or two lines on stderr."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
import typer.core

OK, FAILED, BAD_INPUT, INTERNAL, INTERRUPTED = 0, 1, 2, 70, 130

_FLAGS = {  # Python options whose flag is not their own name with dashes
    "ignore_config_keys": "--ignore-config-key",
    "vera_inputs": "--vera-input",
    "weights": "--weight-file",
}
_REFUSALS = (
    ("jaxmerge.io.errors", "AdapterError"),
    ("jaxmerge.learning.checkpoint", "CheckpointError"),
)
_OPTIONS = (
    *("heads", "assume_alpha", "strip_prefix", "add_prefix", "allow_different_bases"),
    *("allow_zero", "weights", "ignore_config_keys", "vera_inputs", "layout"),
    *("rank", "energy", "ragged", "dense", "dtype"),
    *("text_heads", "logit_scale", "max_length", "work"),
    *("names", "stats", "sketch"),
)
_ASSIGNMENT = re.compile(  # steps of pipelines are matched first, and left alone
    rf"\w\([^()]*\)|\b({'|'.join(_OPTIONS)})=(True\b|\[?'[^']*'\]?|<[^>]*>|[-+.\w]+)?"
)


class CommandError(Exception):
    """Something that the caller of a command has to change."""

    code = BAD_INPUT


class VerificationFailed(CommandError):
    """A folder that is not what its record says."""

    code = FAILED


class WorseThanBase(CommandError):
    """Adapters that do harm on their own data."""

    code = FAILED


class FitDiverged(CommandError):
    """A fit whose numbers are no longer finite."""

    code = FAILED


@contextmanager
def refusing_bad_input() -> Iterator[None]:
    """What loaders and checks refuse by a ValueError is for the caller to change."""
    from jaxmerge.io import AdapterError

    try:
        yield
    except AdapterError:
        raise
    except ValueError as error:
        raise CommandError(str(error)) from error


class Commands(typer.core.TyperGroup):
    """The group of all commands, with one place where every one of them ends."""

    def main(self, args: Any = None, **options: Any) -> Any:
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        shows_traceback = bool(os.environ.get("JAXMERGE_TRACEBACK"))
        if "--traceback" in args:
            args.remove("--traceback")
            shows_traceback = True
        options["standalone_mode"] = False
        try:
            code = super().main(args=args, **options)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            if shows_traceback:
                traceback.print_exc()
            code, message = _explain(error)
            print(f"error: {message}", file=sys.stderr)
        sys.exit(code or OK)


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message of what ended a command."""
    from jaxmerge.spec import PipelineError

    if isinstance(error, typer.Abort):
        return INTERRUPTED, "interrupted"
    if hasattr(error, "format_message"):  # what typer says about the command line
        return BAD_INPUT, f"{error.format_message()} (see --help)"
    if isinstance(error, CommandError):
        return error.code, as_flags(str(error))
    if isinstance(error, PipelineError) or _is_refusal(error):
        return BAD_INPUT, as_flags(str(error))
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return INTERNAL, (
            "not enough memory; merge --chunk 1 works on one module at a time, "
            "learn --accumulate on one task, check --batch 1 on one input"
        )
    first = (str(error).splitlines() or [""])[0][:300]
    return INTERNAL, (
        f"internal failure, {type(error).__name__}: {first}\n"
        "run it again with --traceback (or JAXMERGE_TRACEBACK=1) and report it"
    )


def _is_refusal(error: Exception) -> bool:
    """One of `_REFUSALS`; a module that is not loaded raised none."""
    modules = ((sys.modules.get(module), name) for module, name in _REFUSALS)
    return any(
        module and isinstance(error, getattr(module, name)) for module, name in modules
    )


def as_flags(message: str) -> str:
    """A message of the library with its options spelled as flags.

    >>> as_flags("pass assume_alpha=<number>, or allow_different_bases=True")
    'pass --assume-alpha <number>, or --allow-different-bases'
    >>> as_flags("truncate needs rank: write truncate(rank=..)")
    'truncate needs rank: write truncate(rank=..)'
    """

    def flag(match: re.Match) -> str:
        if match[1] is None:
            return match[0]
        name, value = match[1], (match[2] or "").strip("[]'")
        spelled = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        return spelled if value in ("", "True") else f"{spelled} {value}"

    return _ASSIGNMENT.sub(flag, message).replace("pass force", "pass --force")
