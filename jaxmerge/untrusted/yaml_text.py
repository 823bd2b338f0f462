"""YAML of unknown origin: the part of it that says what JSON says, and no more.

Texts, numbers, true, false, null, lists and tables with texts as names. What else YAML
has is refused: tags, which name types to build, anchors and aliases, with which a short
text can stand for a huge one, and names that occur twice. As in JSON `no` and
`2024-01-01` are texts, and 1e-3 is a number.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from jaxmerge.untrusted.json_text import read_bounded

LARGEST = 2**20  # bytes of a file
_DEEPEST = 24  # lists and tables inside of each other
_PLAIN = {
    "tag:yaml.org,2002:null": (r"null|~|", ["~", "n", ""]),
    "tag:yaml.org,2002:bool": (r"true|false|True|False", [*"tfTF"]),
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9]{0,30})", [*"-+0123456789"]),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        [*"-+.0123456789"],
    ),
}


class _Loader(yaml.SafeLoader):
    """Makes plain values only, each name once, without anchors and tags."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"{_place(event)}: anchors and aliases are not read")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{_place(event)}: tags are not read")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: ARG002
        found: dict[Any, Any] = {}
        for key, value in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise ValueError(f"{_place(key)}: a name that is no text; quote it")
            if name in found:
                raise ValueError(f"{_place(key)}: {name[:60]!r} occurs twice")
            found[name] = self.construct_object(value, deep=True)
        return found


def read_yaml(path: Path) -> Any:
    """The value in a file.

    Raises:
      OSError: the file cannot be read.
      ValueError: as for `parse_yaml`.
    """
    return parse_yaml(read_bounded(path, LARGEST))


def parse_yaml(data: bytes) -> Any:
    """The value of a text in UTF-8.

    Raises:
      ValueError: says what is wrong with the text, and where.

    >>> parse_yaml(b"weights: [1e-3, .5]\\nheads: no")
    {'weights': [0.001, 0.5], 'heads': 'no'}
    >>> parse_yaml(b"a: &x [1]\\nb: *x")
    Traceback (most recent call last):
    ValueError: line 1: anchors and aliases are not read
    """
    try:
        text = data.decode("utf-8-sig")
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 ({error.reason})") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(_explained(error)) from error
    _refuse_odd(value)
    return value


def as_yaml(value: Any) -> str:
    """Plain values as text that `parse_yaml` reads as the same values.

    >>> print(as_yaml({"pipeline": "concat|scale(0.5)", "weights": [1.0, 0.5]}), end="")
    pipeline: concat|scale(0.5)
    weights: [1.0, 0.5]
    """
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=88,
    )


_Loader.yaml_implicit_resolvers = {}  # no dates, no `no`, no octal numbers


class _Dumper(yaml.SafeDumper):
    """Writes no aliases, and in quotes what `_Loader` would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


for _tag, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def _refuse_odd(value: Any) -> None:
    """Refuses numbers and texts that JSON could not hold."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            _refuse_odd(item)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text holds half a character") from error
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is too large")


def _place(event: Any) -> str:
    return f"line {event.start_mark.line + 1}"


def _explained(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    says = str(getattr(error, "problem", None) or error).splitlines()[0]
    return f"line {mark.line + 1}: {says}" if mark is not None else says
