"""Names of modules with a prefix taken off, put in front or replaced."""

from collections.abc import Callable, Collection
from pathlib import Path

from jaxmerge.io.errors import AdapterError
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.wrappers import foreign_front
from jaxmerge.refusals import Option


def prefix_change(
    names: Collection[str], *, strip_prefix: str = "", add_prefix: str = ""
) -> Callable[[str], str]:
    """The change that two prefixes make to the names of one adapter.

    With both, the one takes the place of the other, and names without ``strip_prefix``
    keep their form; so do names with ``add_prefix``, if it is the longer of two of
    which one starts with the other. An adapter in which no name has either prefix gets
    ``add_prefix`` in front of all names.

    Args:
      names: of all modules of the adapter, saved ones included.
      strip_prefix: taken off; "" for nothing.
      add_prefix: put in front; "" for nothing.

    >>> change = prefix_change(["m.fc", "head"], strip_prefix="m.", add_prefix="m.lm.")
    >>> [change(name) for name in ("m.fc", "m.lm.fc", "head")]
    ['m.lm.fc', 'm.lm.fc', 'head']
    >>> prefix_change(["fc", "head"], add_prefix="m.")("head")
    'm.head'
    """
    kept = add_prefix if add_prefix.startswith(strip_prefix) else ""

    def has(name: str, prefix: str) -> bool:
        return bool(prefix) and name.startswith(prefix)

    known = any(has(n, strip_prefix) or has(n, add_prefix) for n in names)

    def changed(name: str) -> str:
        if has(name, kept):
            return name
        if has(name, strip_prefix):
            return add_prefix + name.removeprefix(strip_prefix)
        return name if known else add_prefix + name

    return changed


def check_names(
    names: Collection[str], changed: Collection[str], path: Path, options: ReadOptions
) -> None:
    """AdapterError unless every name has become one of its own that a model can have.

    Args:
      names: of modules as the file has them.
      changed: the same after `prefix_change`.
      path: the folder, for messages.
      options: the prefixes.
    """
    taken: set[str] = set()
    for name, new in zip(names, changed, strict=True):
        broken = "" in new.split(".") and "" not in name.split(".")
        if broken or not new or new in taken:
            raise AdapterError(
                f"{path}: with ",
                Option("strip_prefix", options.strip_prefix, quoted=True),
                " and ",
                Option("add_prefix", options.add_prefix, quoted=True),
                f" module {name!r} has no name of its own",
            )
        taken.add(new)
    confirmed = options.add_prefix
    for new in changed:
        front = foreign_front(new)
        if front and not (confirmed.startswith(front) and new.startswith(confirmed)):
            raise AdapterError(
                f"{path}: the name of module {new!r} goes on behind {front!r}, with "
                "which PEFT begins its names, so something unknown was wrapped around "
                "the model and the adapter would attach nowhere; pass ",
                Option("strip_prefix", front, quoted=True),
                ", or, if the base model has a module of that name, ",
                Option("add_prefix", front, quoted=True),
            )
