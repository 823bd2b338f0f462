"""The public names in their groups, as jaxmerge/api.py lists them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def groups() -> dict[str, list[str]]:
    """What a comment in ``__all__`` says -> the names below it."""
    listed = (ROOT / "jaxmerge/api.py").read_text().partition("__all__ = [")[2]
    found: dict[str, list[str]] = {}
    names: list[str] = []
    title = ""
    for line in listed.splitlines():
        if comment := re.match(r" +# (.*)", line):
            title, names = comment[1], []
        names.extend(re.findall(r'"(\w+)"', line))
        if names:
            found[title] = names
    return found


GROUPS = groups()
PACKAGES = GROUPS["packages of their own"]
PUBLIC = {name for names in GROUPS.values() for name in names} - {*PACKAGES}
