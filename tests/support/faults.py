"""Faults of the disk and of the process, at every step that changes files.

`watched` tells of each step that Python takes below a folder, before it is taken; what
listens may raise, end the process, or write down what a power cut would leave.
"""

import itertools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jaxmerge import disk
from jaxmerge.io.leftovers import mend

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.link"}
_listener: Callable[[str, tuple], None] | None = None
_installed = False


class Killed(BaseException):
    """Stands for the end of a process: from here on nothing changes any more."""


def _hook(event: str, args: tuple) -> None:
    if _listener is not None and (event == "open" or event in _CHANGES):
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITES):
            return
        _listener(event, args)


@contextmanager
def watched(root: Path, step: Callable[[str, str], None]) -> Iterator[None]:
    """Calls ``step(kind, path)`` before every change below a folder.

    Kinds are the audit events of Python, and "sync" and "exchange".
    """
    global _listener, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    root, inside = str(root), threading.local()

    def tell(kind: str, path: str) -> None:
        if not getattr(inside, "step", False):  # not what the listener does itself
            inside.step = True
            try:
                step(kind, path)
            finally:
                inside.step = False

    flush, exchange = disk._flush, disk._renameat2

    def listen(event: str, args: tuple) -> None:
        path = args[0]
        if isinstance(path, str | bytes | os.PathLike):
            path = os.fsdecode(path)
            if path.startswith(root) or not os.path.isabs(path):  # below a descriptor
                tell(event, path)

    def watched_flush(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(root):
            tell("sync", path)
        flush(descriptor)
        if path.startswith(root):
            tell("synced", path)

    def watched_exchange(one, other, flags):
        tell("exchange", os.fspath(one))
        return exchange(one, other, flags)

    disk._flush, disk._renameat2, _listener = watched_flush, watched_exchange, listen
    try:
        yield
    finally:
        disk._flush, disk._renameat2, _listener = flush, exchange, None


def numbered(act: Callable[[int], object]) -> Callable[[str, str], None]:
    """Calls ``act(n)`` before the n-th change; the end of a sync is none."""
    count = itertools.count()

    def step(kind: str, _: str) -> None:
        if kind != "synced":
            act(next(count))

    return step


def steps_of(root: Path, work: Callable[[], None]) -> int:
    """How many changes some work makes."""
    steps: list[int] = []
    with watched(root, numbered(steps.append)):
        work()
    return len(steps)


def at(n: int, error: BaseException, *, dead: bool) -> Callable[[str, str], None]:
    """Raises at the n-th change; a dead process makes none after it either."""

    def act(here: int) -> None:
        if here == n or (dead and here > n):
            raise error

    return numbered(act)


class PowerCuts:
    """What a power cut may leave of a folder, while some work changes it.

    A file keeps the bytes of its last sync, or has those of now, or none. A folder has
    the names of its last sync or of any moment since; folders do not wait for each
    other. This is less than any journalling file system promises.
    """

    def __init__(self, root: Path):
        self.root = root
        self._numbers, self._next = {}, itertools.count()
        self._names: dict[int, list[dict[str, int]]] = {}
        self._bytes: dict[int, bytes] = {}  # as synced
        self._now: dict[int, bytes] = {}
        self._observe()
        for number, seen in self._names.items():
            self._names[number] = seen[-1:]
        self._bytes = dict(self._now)

    def step(self, kind: str, path: str) -> None:
        """To be called before every change, and with "synced" after every sync."""
        self._observe()
        if kind == "synced" and os.path.lexists(path):
            number = self._numbers[os.lstat(path).st_ino]
            if number in self._names:
                self._names[number] = self._names[number][-1:]
            else:
                self._bytes[number] = self._now[number]

    def leftovers(self) -> Iterator[dict[str, bytes | None]]:
        """Every state that a cut at this moment may leave, as path -> bytes.

        Folders are paths with None. All folders old, all new, and each by itself at
        every moment since its sync; files lost, or kept.
        """
        self._observe()
        moving = [n for n, seen in self._names.items() if len(seen) > 1]
        chosen = [{}, {n: len(self._names[n]) - 1 for n in moving}]
        for other in list(chosen):
            for number in moving:
                for moment in range(len(self._names[number])):
                    chosen.append(other | {number: moment})
        top, seen = self._numbers[os.stat(self.root).st_ino], set()
        for choice, kept in itertools.product(chosen, (False, True)):
            state = dict(self._tree(top, choice, kept))
            if frozenset(state.items()) not in seen:
                seen.add(frozenset(state.items()))
                yield state

    def _tree(
        self, number: int, choice: dict[int, int], kept: bool, above: str = ""
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, inner in self._names[number][choice.get(number, 0)].items():
            if inner in self._names:
                yield f"{above}{name}/", None
                yield from self._tree(inner, choice, kept, f"{above}{name}/")
            else:
                synced = self._bytes.get(inner, b"")
                yield f"{above}{name}", self._now[inner] if kept else synced

    def _observe(self) -> None:
        found: dict[int, int] = {}
        for place, folders, files in os.walk(self.root):
            self._number(place, found)
            for name in (*folders, *files):
                self._number(os.path.join(place, name), found)
        self._numbers = found  # a number that is gone may come back for another file
        for place, folders, files in os.walk(self.root):
            number = found[os.lstat(place).st_ino]
            names = {
                name: found[os.lstat(os.path.join(place, name)).st_ino]
                for name in (*folders, *files)
            }
            seen = self._names.setdefault(number, [{}])
            if seen[-1] != names:
                seen.append(names)
            for name in files:
                path = os.path.join(place, name)
                self._now[names[name]] = Path(path).read_bytes()

    def _number(self, path: str, found: dict[int, int]) -> None:
        inode = os.lstat(path).st_ino
        known = self._numbers.get(inode)
        found[inode] = next(self._next) if known is None else known


def mend_quietly(target: Path) -> None:
    """What the next run does first, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", disk.Mended)
        mend(target)


def lay_out(state: Mapping[str, bytes | None], folder: Path) -> Path:
    """Writes a state, as path -> bytes or None for a folder, into a new folder."""
    folder.mkdir()
    for path, data in state.items():
        if data is None:
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    return folder
