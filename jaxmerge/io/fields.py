"""What the fields of a JSON record may be, and a refusal that names the wrong one.

A record is what this package wrote, but it is read as what it is: a file that anybody
may have changed.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.hub_ids import hub_id


class Value(NamedTuple):
    """One value: how messages say it, and whether it is accepted."""

    says: str
    accepts: Callable[[Any], bool]


class Items(NamedTuple):
    """A list of values of one kind."""

    each: "Schema"
    least: int = 0


class Table(NamedTuple):
    """An object with any names, whose values are of one kind."""

    each: "Schema"
    names: Value | None = None


class Fields(NamedTuple):
    """An object with known names.

    Attributes:
      required: name -> what must be there.
      optional: name -> what may be there.
      others: names that are not known are accepted, whatever they hold.
    """

    required: Mapping[str, "Schema"] = {}
    optional: Mapping[str, "Schema"] = {}
    others: bool = False


class Maybe(NamedTuple):
    """A value, or null."""

    each: "Schema"


Schema = Value | Items | Table | Fields | Maybe


def check_fields(value: Any, schema: Schema, where: object, field: str = "") -> None:
    """AdapterError, which names file and field, unless a value is of a schema.

    >>> check_fields({"r": 0}, Fields({"r": FLAG}), "x")
    Traceback (most recent call last):
    jaxmerge.io.errors.AdapterError: x: field r: expected true or false, found 0
    """
    if isinstance(schema, Maybe):
        if value is not None:
            check_fields(value, schema.each, where, field)
    elif isinstance(schema, Value):
        if not schema.accepts(value):
            raise wrong_field(where, field, schema.says, value)
    elif isinstance(schema, Items):
        if not isinstance(value, list) or len(value) < schema.least:
            says = f"a list of at least {schema.least}" if schema.least else "a list"
            raise wrong_field(where, field, says, value)
        for index, item in enumerate(value):
            check_fields(item, schema.each, where, f"{field}[{index}]")
    elif not isinstance(value, Mapping):
        raise wrong_field(where, field, "an object", value)
    elif isinstance(schema, Table):
        for name, item in value.items():
            if schema.names is not None and not schema.names.accepts(name):
                says = f"names that are {schema.names.says}"
                raise wrong_field(where, field, says, name)
            check_fields(item, schema.each, where, _below(field, name))
    else:
        _check_names(value, schema, where, field)


def wrong_field(where: object, field: str, says: str, found: Any) -> AdapterError:
    """The refusal of one field."""
    named = f"field {field}" if field else "the record"
    return AdapterError(f"{where}: {named}: expected {says}, found {show(found)}")


def _check_names(
    value: Mapping[str, Any], schema: Fields, where: object, field: str
) -> None:
    for name in schema.required:
        if name not in value:
            raise AdapterError(f"{where}: field {_below(field, name)}: is missing")
    known = {**schema.required, **schema.optional}
    for name, item in value.items():
        if name in known:
            check_fields(item, known[name], where, _below(field, name))
        elif not schema.others:
            raise AdapterError(
                f"{where}: field {_below(field, show(name)[1:-1])}: is not known; the "
                "record was changed, or another version wrote it"
            )


def _below(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def whole(least: int, most: int = 2**63 - 1) -> Callable[[Any], bool]:
    """Whether a value is a whole number within bounds."""
    return lambda value: type(value) is int and least <= value <= most


def one_of(choices: Sequence[str]) -> Value:
    """One of some texts."""
    says = f"one of {', '.join(choices)}"
    return Value(says, lambda value: isinstance(value, str) and value in choices)


def _text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _path(value: Any) -> bool:
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _inside(value: Any) -> bool:
    if not _path(value):
        return False
    parts = PurePosixPath(value).parts
    return value == "/".join(parts) and ".." not in parts and parts[0] != "/"


ANY = Value("anything", lambda _: True)
TEXT = Value("text", _text)
FLAG = Value("true or false", lambda value: isinstance(value, bool))
NUMBER = Value("a finite number", number)
WHOLE = Value("a whole number", whole(-(2**63)))
COUNT = Value("a whole number of at least 1", whole(1))
PATH = Value("a path", _path)
INSIDE = Value("paths below the folder", _inside)
DIGEST = Value(
    "a SHA-256 of 64 hexadecimal digits",
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"[0-9a-f]{64}", value)),
)
HUB_ID = Value(
    "an id on the Hub", lambda value: isinstance(value, str) and bool(hub_id(value))
)
DIGESTS = Table(DIGEST, names=INSIDE)  # file -> its SHA-256
