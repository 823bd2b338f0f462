"""How commands end: exit codes, and errors as one or two lines on stderr."""

import contextlib
import json
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Generator
from typing import Any

import typer
import typer.core

from jaxmerge.disk import Mended, trouble
from jaxmerge.refusals import Message, Option, Refusal
from jaxmerge.untrusted.text import shown

OK, FAILED, BAD_INPUT, INTERNAL, INTERRUPTED = 0, 1, 2, 70, 130

# options whose flag is not their own name with dashes
_OFF = {"maximise": "--minimise"}  # flags that switch an option off
_FLAGS = {"ignore_config_keys": "--ignore-config-key", "vera_inputs": "--vera-input"}


class CommandError(Exception):
    """How a command ends that has done its work and found something wrong."""

    code = FAILED


class VerificationFailed(CommandError):
    """A folder that is not what its record says."""


class CannotBeRepeated(CommandError):
    """A merge by steps that this process does not know."""

    code = BAD_INPUT


class WorseThanBase(CommandError):
    """Adapters that do harm on their own data."""


class WouldBeRefused(CommandError):
    """Adapters that cannot be merged as they are; what is wrong has been printed."""

    code = BAD_INPUT


class Interrupted(CommandError):
    """A command that was stopped and has printed what it had by then."""

    code = INTERRUPTED


class FitDiverged(CommandError):
    """A fit whose numbers are no longer finite."""


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
            with _mended_as_notes():
                code = super().main(args=args, **options)
            if code == INTERRUPTED:  # typer has made a code of it
                raise KeyboardInterrupt
            _flush_output()
        except KeyboardInterrupt:
            code = INTERRUPTED
            if "--json" in args:
                print(json.dumps({"error": "interrupted", "exit_code": code}, indent=2))
        except BrokenPipeError:  # whoever reads has seen enough
            code = FAILED
        except Exception as error:
            if shows_traceback:
                traceback.print_exc()
            code, message = _explain(error)
            print(f"error: {shown(message)}", file=sys.stderr)
            if "--json" in args and not isinstance(error, CommandError):
                print(json.dumps({"error": message, "exit_code": code}, indent=2))
        sys.exit(code or OK)


def stop_as_by_ctrl_c() -> None:
    """A request to end, and the end of the terminal, interrupt as Ctrl-C does."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _flush_output() -> None:
    """Writes what was printed, while a failure can still be told."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextlib.contextmanager
def _mended_as_notes() -> Generator[None, None, None]:
    """Prints warnings of what was mended as notes, each of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Mended)
        others = warnings.showwarning

        def show(message: Warning | str, kind: type[Warning], *where: Any) -> None:
            if issubclass(kind, Mended):
                print(f"note: {shown(str(message))}", file=sys.stderr)
            else:
                others(shown(str(message)), kind, *where)

        warnings.showwarning = show
        yield


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message of what ended a command."""
    if isinstance(error, typer.Abort):
        return INTERRUPTED, "interrupted"
    format_message = getattr(error, "format_message", None)
    if callable(format_message):  # what typer says about the command line
        return BAD_INPUT, f"{format_message()} (see --help)"
    if isinstance(error, CommandError):
        return error.code, str(error)
    if isinstance(error, Refusal):
        return BAD_INPUT, as_flags(error.message)
    reason = trouble(error)
    if reason is not None:
        path = getattr(error, "filename", None)
        return BAD_INPUT, f"{path}: {reason}" if path else f"cannot write: {reason}"
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


def as_flags(message: Message) -> str:
    """A message of the library with its options spelled as flags.

    >>> as_flags(Message(["pass ", Option("assume_alpha", "<number>")]))
    'pass --assume-alpha <number>'
    >>> as_flags(Message(["or ", Option("allow_different_bases", "True")]))
    'or --allow-different-bases'
    >>> as_flags(Message([Option("ignore_config_keys", ("a", "b;c"), listed=True)]))
    "--ignore-config-key a --ignore-config-key 'b;c'"
    """
    return message.spelled(as_flag)


def as_flag(option: Option) -> str:
    """An option as a flag with its value."""
    flag = _FLAGS.get(option.name, f"--{option.name.replace('_', '-')}")
    if option.value in ("", "True"):
        return flag
    if option.value == "False" and option.name in _OFF:
        return _OFF[option.name]
    return " ".join(f"{flag} {_in_a_shell(value)}" for value in option.values)


def _in_a_shell(value: str) -> str:
    """A value to be typed; names from files may hold what a shell would run."""
    return value if re.fullmatch(r"<[\w ,.]+>", value) else shlex.quote(value)
