"""The reference of all public names, in the groups of jaxmerge/api.py."""

from importlib import import_module
from types import ModuleType

from names import GROUPS, PACKAGES
from step_pages import documented

from jaxmerge.spec import STEPS


def page() -> str:
    """The names of the package itself."""
    parts = [
        "# Reference",
        "All public names of `jaxmerge`, grouped as in `jaxmerge.api`. Steps of "
        "pipelines have pages of their own.",
    ]
    elsewhere = {path: name for name in STEPS for path in documented(name)}
    for title, names in GROUPS.items():
        if names == PACKAGES:
            continue
        parts.append(f"## {title[:1].upper()}{title[1:]}")
        for name in names:
            step = elsewhere.get(f"jaxmerge.{name}") or (name in STEPS and name)
            if step:
                parts.append(f"[`{name}`](methods/{step}.md)")
            else:
                parts.append(f"::: jaxmerge.{name}")
    rows = [f"* [`jaxmerge.{name}`](api/{name}.md)" for name in PACKAGES]
    return "\n\n".join([*parts, "## Packages of their own", "\n".join(rows)]) + "\n"


def package(name: str) -> str:
    """The page of a public package, or of the functions of a public module."""
    module = import_module(f"jaxmerge.{name}")
    listed = getattr(module, "__all__", None)
    names = listed or [
        member
        for member, value in vars(module).items()
        if not member.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
    members = [f"::: {_place(module, member)}" for member in names]
    heading = f"# jaxmerge.{name}\n\n{module.__doc__}"
    return "\n\n".join([heading, *members]) + "\n"


def _place(package: ModuleType, member: str) -> str:
    """Where a public name is; a module may have the name of the function in it."""
    value = getattr(package, member)
    home = getattr(value, "__module__", "")
    if home == f"{package.__name__}.{member}":
        return f"{home}.{member}"
    return f"{package.__name__}.{member}"
