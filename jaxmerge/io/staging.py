"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path

from jaxmerge.folders import Folder
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.replaceable import ADAPTER, Replaceable
from jaxmerge.refusals import Option


@contextlib.contextmanager
def staged_folder(
    out: Folder,
    *,
    force: bool = False,
    inputs: Sequence[Folder] = (),
    kind: Replaceable = ADAPTER,
) -> Generator[Path, None, None]:
    """Gives a new folder beside ``out`` to fill; on success it becomes ``out``.

    Whatever happens inside, ``out`` is afterwards either the complete new folder or
    exactly what it was before. The filled folder is renamed; an old one is moved aside
    first and removed last.

    Args:
      out: folder to create; parent folders are created as needed.
      force: replace ``out`` if it is empty, or holds nothing but files that a writer
        of this kind puts there. Any other content is never removed.
      inputs: files and folders that must survive: ``out`` may not be or contain one
        of them.
      kind: the kind of folder that is written.

    Raises:
      AdapterError: ``out`` exists (without force), is something that may not be
        replaced, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    check_target(out, force=force, inputs=inputs, kind=kind)
    made = [p for p in (out.parent, *out.parent.parents) if not p.exists()]
    mark = uuid.uuid4().hex[:12]
    staged = out.with_name(f".{out.name}.{mark}.new")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir()
        yield staged
        check_target(out, force=force, inputs=inputs, kind=kind)  # it may have changed
        _replace(staged, out, aside=out.with_name(f".{out.name}.{mark}.old"))
    except OSError as error:
        _discard(staged, made)
        reason = error.strerror or error
        raise AdapterError(f"{out}: cannot be written ({reason})") from error
    except BaseException:
        _discard(staged, made)
        raise


def check_target(
    out: Folder,
    *,
    force: bool,
    inputs: Sequence[Folder],
    kind: Replaceable = ADAPTER,
) -> None:
    """Refuses what `staged_folder` would not replace; AdapterError says why."""
    out = Path(out)
    if not os.path.lexists(out):
        return
    if not force:
        raise AdapterError(
            f"{out}: exists already; choose another name or pass ", Option("force")
        )
    if out.is_symlink() or not out.is_dir():
        raise AdapterError(f"{out}: not a folder of its own; it will not be replaced")
    try:
        held = [path for path in inputs if _holds(out, path)]
        foreign = kind.foreign(out)
    except OSError as error:
        raise AdapterError(f"{out}: cannot be read ({error.strerror})") from error
    if held:
        raise AdapterError(
            f"{out}: is or holds the input {os.fspath(held[0])}; choose another folder"
        )
    if foreign:
        raise AdapterError(
            f"{out}: holds files that are not {kind.name}: {listing(foreign)}; ",
            Option("force"),
            " replaces nothing else, so move them away or choose another folder",
        )


def _holds(folder: Path, path: Folder) -> bool:
    """Whether a path is an existing folder or lies in it, by whatever names."""
    real = Path(path).resolve()
    return any(
        place.exists() and place.samefile(folder) for place in (real, *real.parents)
    )


def _replace(staged: Path, out: Path, *, aside: Path) -> None:
    replacing = out.exists()
    if replacing:
        out.rename(aside)
    try:
        staged.rename(out)
    except OSError:
        if replacing:
            aside.rename(out)
        raise
    if replacing:
        shutil.rmtree(aside)


def _discard(staged: Path, made: Sequence[Path]) -> None:
    """Removes the unfinished folder and the parents that were made for it."""
    shutil.rmtree(staged, ignore_errors=True)
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()
