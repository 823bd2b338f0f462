"""Folders and files that appear whole or not at all, and stay after a power cut."""

import contextlib
import errno
import os
import shutil
import time
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmerge.disk import (
    Mended,
    claim,
    exchange,
    rename_new,
    sync,
    sync_tree,
    trouble,
)
from jaxmerge.folders import Folder
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.leftovers import NEW, OLD, beside, mend, new_mark
from jaxmerge.io.replaceable import ADAPTER, Replaceable, held_in
from jaxmerge.processes import meet, together, writes
from jaxmerge.refusals import Option
from jaxmerge.untrusted.text import is_plain

_PATIENCE = 10.0  # seconds to wait for another run that replaces the same folder


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
    exactly what it was before. Everything is on the disk before the names of the two
    are exchanged; the old folder is removed when that is on the disk too.

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
    with _staging(out) as place:
        yield place.staged
        sync_tree(place.staged)
        check_target(out, force=force, inputs=inputs, kind=kind)  # it may have changed
        if os.path.lexists(out):
            _replace(place, out, kind)
        else:
            _appear(place.staged, out)


@contextlib.contextmanager
def folder_of_one(out: Folder, **options: Any) -> Generator[Path | None, None, None]:
    """`staged_folder` in the one process that writes; None in the others.

    Where one process fails, nothing appears and all raise its error.

    Args:
      out: folder to create.
      **options: those of `staged_folder`.
    """
    with contextlib.ExitStack() as staged:
        with together():
            folder = None
            if writes():
                folder = staged.enter_context(staged_folder(out, **options))
        with together(), staged:
            yield folder
            meet()  # nothing appears unless all have come so far


@contextlib.contextmanager
def staged_file(path: Folder) -> Generator[Path, None, None]:
    """Gives a path to write to; on success that file replaces ``path`` at once.

    Args:
      path: file to create or replace; what a link leads to is replaced, and what is no
        regular file, such as a pipe, is written as it is.

    Raises:
      AdapterError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    mend(path)
    with _staging(path) as place:
        staged = place.staged / path.name
        yield staged
        sync(staged)
        os.replace(staged, path)
        sync(path.parent)


def check_target(
    out: Folder,
    *,
    force: bool,
    inputs: Sequence[Folder],
    kind: Replaceable = ADAPTER,
) -> None:
    """Refuses what `staged_folder` would not replace; AdapterError says why.

    What a stopped run left of ``out`` is mended first.
    """
    out = Path(out)
    if not is_plain(str(out)):
        raise AdapterError(
            f"{str(out)!r}: a name with control characters, or that is not in UTF-8; "
            "choose another name"
        )
    mend(out)
    if not os.path.lexists(out):
        return
    if not force:
        raise AdapterError(
            f"{out}: exists already; choose another name or pass ", Option("force")
        )
    if out.is_symlink() or not out.is_dir():
        raise AdapterError(f"{out}: not a folder of its own; it will not be replaced")
    try:
        held = [path for path in inputs if held_in(out, path)]
        foreign = kind.foreign(out)
    except OSError as error:
        raise AdapterError(f"{out}: cannot be read ({error.strerror})") from error
    if held:
        raise AdapterError(
            f"{out}: is or holds the input {os.fspath(held[0])}; choose another folder"
        )
    if foreign:
        raise _holds_foreign(out, foreign, kind)


def _holds_foreign(
    out: Path, foreign: Sequence[str], kind: Replaceable
) -> AdapterError:
    return AdapterError(
        f"{out}: holds files that are not {kind.name}: {listing(foreign)}; ",
        Option("force"),
        " replaces nothing else, so move them away or choose another folder",
    )


class _Place(NamedTuple):
    """Where a run works.

    Attributes:
      staged: a locked folder to fill. Whatever is in it in the end, unfinished or
        replaced, is removed.
      aside: a free name for what is replaced.
      locks: descriptors that are kept open until the end.
    """

    staged: Path
    aside: Path
    locks: list[int]


@contextlib.contextmanager
def _staging(target: Path) -> Generator[_Place, None, None]:
    made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
    place: _Place | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for parent in made:
            sync(parent.parent)
        place = _new_place(target)
        yield place
        _discard(place.staged)
    except BaseException as error:
        if place is not None:
            _restore(target, place.aside)
            _discard(place.staged)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        reason = _reason(error)
        if reason is None:
            raise
        raise AdapterError(f"{target}: cannot be written ({reason})") from error
    finally:
        for lock in place.locks if place is not None else ():
            os.close(lock)
    if place is not None and os.path.lexists(place.staged):
        warnings.warn(
            f"{place.staged}: holds what {target.name} was before and cannot be "
            "removed completely; remove it yourself",
            Mended,
            stacklevel=4,
        )


def _new_place(target: Path) -> _Place:
    """Makes and locks a folder, unless another run takes it for left over first."""
    while True:
        mark = new_mark()
        staged = beside(target, mark, NEW)
        staged.mkdir()
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = claim(staged)
            locks = [] if lock is None else [lock]
            return _Place(staged, beside(target, mark, OLD), locks)


def _reason(error: BaseException) -> str | None:
    """Why nothing can be written, if that is what an error says."""
    if isinstance(error, AdapterError) or not isinstance(error, Exception):
        return None
    other = error.strerror or str(error) if isinstance(error, OSError) else None
    return trouble(error) or other


def _appear(staged: Path, out: Path) -> None:
    try:
        rename_new(staged, out)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise AdapterError(
                f"{out}: has appeared meanwhile; choose another name or pass ",
                Option("force"),
            ) from error
        raise
    sync(out.parent)


def _replace(place: _Place, out: Path, kind: Replaceable) -> None:
    """The new folder takes the name of the old one, which goes to that of the new."""
    lock = _claim_patiently(out)
    if lock is not None:
        place.locks.append(lock)
    _swap(place, out)
    try:
        foreign = kind.foreign(place.staged)  # what came in at the last moment
        if foreign:
            raise _holds_foreign(out, foreign, kind)
        sync(out.parent)
    except (OSError, AdapterError):
        _swap(place, out)
        raise


def _swap(place: _Place, out: Path) -> None:
    if not exchange(place.staged, out):
        os.rename(out, place.aside)
        os.rename(place.staged, out)
        sync(out.parent)
        os.rename(place.aside, place.staged)


def _claim_patiently(out: Path) -> int | None:
    """Locks the folder that is replaced, so that nobody takes it for left over."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return claim(out)
        except (BlockingIOError, FileNotFoundError) as error:
            if time.monotonic() > end:
                raise AdapterError(
                    f"{out}: another run is replacing it; try again when it has ended"
                ) from error
        time.sleep(0.02)


def _restore(target: Path, aside: Path) -> None:
    """Puts back what was moved aside; removes it where its successor is in place."""
    if not os.path.lexists(aside):
        return
    if os.path.lexists(target):
        _discard(aside)
    else:
        with contextlib.suppress(OSError):
            os.rename(aside, target)


def _discard(staged: Path) -> None:
    """Removes a folder, after its parent says on the disk what it is."""
    if os.path.lexists(staged):
        with contextlib.suppress(OSError):
            sync(staged.parent)
        try:
            shutil.rmtree(staged, ignore_errors=True)
        finally:  # after an interruption too
            shutil.rmtree(staged, ignore_errors=True)
