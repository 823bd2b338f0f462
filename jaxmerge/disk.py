"""What the disk promises: bytes that outlast a power cut, names that change at once.

A file is on the disk when it was synced, and has its name there when its folder was.
Where a system lacks one of these calls, the others are used without it, and each
function says what is then missing.
"""

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jaxmerge.folders import Folder
from jaxmerge.refusals import Refusal

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

_NO_REPLACE, _EXCHANGE = 1, 2  # of renameat2
_LACKS_CALL = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class Mended(UserWarning):
    """What a stopped run or a fault of the disk left, and what was done about it."""


AGAIN = "let the program that writes it end, and run this again"


class Unchanged:
    """Files that are to be the same from here on, as far as the system tells.

    Digests that are taken in between are then of what was read.

    Args:
      paths: of files and folders; what is missing has to stay so.
    """

    def __init__(self, paths: Iterable[Path]):
        self._seen = {path: _state(path) for path in paths}

    def refuse(self, only: Iterable[Path] | None = None) -> None:
        """Refusal if a file is not what it was, or was not among them.

        Args:
          only: which files to look at; all unless given.
        """
        for path in self._seen if only is None else only:
            if path not in self._seen or self._seen[path] != _state(path):
                raise Refusal(f"{path}: changed while it was read; {AGAIN}")


def sync(path: Folder) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk.

    Folders of systems that cannot do that, such as Windows, are passed over.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt":
            return
        raise
    try:
        _flush(descriptor)
    except OSError as error:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not (folder and error.errno in _LACKS_CALL):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Folder) -> None:
    """Syncs a folder with everything in it, the folders after what they hold."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                sync(path)
        sync(place)


def share(path: Path) -> None:
    """Lets everybody read a file who may look into its folder.

    `safetensors` makes its files private.
    """
    path.chmod(path.parent.stat().st_mode & 0o666)


def exchange(one: Folder, other: Folder) -> bool:
    """Two names change places, at no moment one of them missing.

    Returns:
      False, with nothing changed, where the system or this disk has no such call.
    """
    return _renameat2(one, other, _EXCHANGE)


def rename_new(path: Folder, name: Folder) -> None:
    """Renames to a name that must be free; FileExistsError if it is not.

    Where the system cannot promise that, an empty folder of that name is lost.
    """
    if not _renameat2(path, name, _NO_REPLACE):
        os.rename(path, name)


def claim(folder: Folder) -> int | None:
    """Locks a folder until the descriptor is closed, at the latest with the process.

    Returns:
      The descriptor; None where the system or the disk has no such locks.

    Raises:
      BlockingIOError: a running process has it.
      OSError: there is no such folder, or a link or a file of that name.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(folder)):
            return descriptor
        raise FileNotFoundError(errno.ENOENT, "renamed meanwhile", os.fspath(folder))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, FileNotFoundError):
            raise
        return None


def steps_to(path: Folder) -> Iterator[Path]:
    """Every file and folder on the way to a path, with all links on it and behind it.

    The end of the path need not exist.
    """
    parts = list(reversed(Path(os.path.abspath(path)).parts))
    place, links = Path(parts.pop()), 0
    while parts:
        part = parts.pop()
        place = place.parent if part == ".." else place / part
        yield place
        if place.is_symlink() and links < 40:
            links += 1
            target = Path(os.readlink(place))
            parts += reversed(target.parts)
            place = Path(parts.pop()) if target.is_absolute() else place.parent


def trouble(error: BaseException | None) -> str | None:
    """In words, why the disk took no more; None if an error has another reason.

    Libraries that write for us tell it in words of their own.

    >>> print(trouble(RuntimeError("I/O error: No space left on device (os error 28)")))
    No space left on device
    >>> print(trouble(ValueError("no such module")))
    None
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error.strerror
        for reason in map(os.strerror, _FULL):
            if reason in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return (found.st_dev, found.st_ino, found.st_size, *times)


def _flush(descriptor: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync leaves it to the drive
    if full is not None and fcntl is not None:
        fcntl.fcntl(descriptor, full)
    else:
        os.fsync(descriptor)


def _renameat2(one: Folder, other: Folder, flags: int) -> bool:
    call = _call()
    if call is None:
        return False
    here = -100  # AT_FDCWD
    if call(here, os.fsencode(one), here, os.fsencode(other), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _LACKS_CALL:
        return False
    raise OSError(number, os.strerror(number), os.fspath(one), None, os.fspath(other))


@cache
def _call() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    call: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        number, text = ctypes.c_int, ctypes.c_char_p
        call.argtypes = (number, text, number, text, ctypes.c_uint)
    return call
