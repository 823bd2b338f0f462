"""Docstrings as Markdown: examples in a fence, public names as links."""

import re
from typing import Any

from griffe import Extension, Object
from names import PUBLIC

_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.M)
_NAMED = re.compile(r"(?<![`\[])`(?:jaxmerge\.)?([a-z]\w+)`(?!`)")


def as_markdown(text: str) -> str:
    """A docstring as a page shows it.

    >>> as_markdown("See `ties`.")
    'See [`ties`][jaxmerge.ties].'
    """

    def link(found: re.Match[str]) -> str:
        name = found[1]
        return f"[`{name}`][jaxmerge.{name}]" if name in PUBLIC else found[0]

    fenced = _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
    return _NAMED.sub(link, fenced)


class Markdown(Extension):
    """What griffe asks for every object of the package."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
