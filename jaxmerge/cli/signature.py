"""Flags from the signature of a function, their help from its docstring."""

import copy
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import typer


class Said(NamedTuple):
    """What a docstring says.

    Attributes:
      about: the function, a line for each paragraph.
      options: name -> its help, and the title of the section in which it stands.
    """

    about: str
    options: dict[str, tuple[str, str]]


def said_by(function: Callable[..., Any]) -> Said:
    """What the docstring of a function says of it and of its options.

    >>> def bake(*, tied: bool = False):
    ...     '''Adds an adapter.
    ...
    ...     Args:
    ...       tied: Keep one weight
    ...         for both.
    ...     '''
    >>> said_by(bake).about, said_by(bake).options
    ('Adds an adapter.', {'tied': ('Keep one weight for both.', 'Args')})
    """
    doc = inspect.getdoc(function) or ""
    about, *sections = re.split(r"^([A-Z][\w ]*):\n", doc, flags=re.MULTILINE)
    entry = re.compile(r"^  (\w+): (.*(?:\n    .*)*)", re.MULTILINE)
    options = {
        name: (" ".join(text.split()), title)
        for title, body in zip(sections[::2], sections[1::2], strict=True)
        for name, text in entry.findall(body)
    }
    paragraphs = (" ".join(part.split()) for part in about.strip().split("\n\n"))
    return Said("\n\n".join(paragraphs), options)


def flags_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function that are given by their names, as typer reads them.

    What its docstring says of a parameter is the help of the flag; a section that is
    not called ``Args`` is a panel of the help. What is not annotated as typer's option
    or argument is an option, and without a flag to switch it off if it is off anyway.
    """
    said = said_by(function).options
    return [
        _as_flag(parameter, *said.get(name, ()))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]


def _as_flag(
    parameter: inspect.Parameter, text: str = "", section: str = "Args"
) -> inspect.Parameter:
    kind: Any = parameter.annotation
    if get_origin(kind) is Annotated:
        kind, info = get_args(kind)
    elif parameter.default is False:
        info = typer.Option(f"--{parameter.name.replace('_', '-')}")
    else:
        info = typer.Option()
    info = copy.copy(info)
    if text:
        info.help = text
        info.rich_help_panel = None if section == "Args" else section
    return parameter.replace(annotation=Annotated[kind, info])
