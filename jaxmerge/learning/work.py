"""The folder in which a fit keeps its checkpoints, and what it belongs to."""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jaxmerge.folders import Folder
from jaxmerge.io.leftovers import NEW, beside, mend, new_mark
from jaxmerge.io.staging import staged_file
from jaxmerge.processes import of_first
from jaxmerge.refusals import Option, Refusal
from jaxmerge.untrusted.json_text import read_json

if TYPE_CHECKING:
    from jaxmerge.io import Adapters
    from jaxmerge.tasks import Unlabeled

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

_RECORD, _LOCK, _CHECKPOINTS = "learn.json", "learn.lock", "checkpoints"


class Work:
    """A folder for one fit, so that the same command goes on where it was stopped.

    The folder is locked until `close`, at the latest until the process ends, however it
    ends. Systems without ``fcntl``, such as Windows, have no such lock: there a warning
    says that nothing keeps a second fit out. Of several processes the first one locks,
    reads and writes, and tells the others.

    Args:
      folder: created if needed.
      identity: as JSON values, everything that determines the fit; ``steps`` may grow.

    Raises:
      ValueError: the folder is another fit's or nobody's, cannot be made, or a fit is
        running in it.
    """

    def __init__(self, folder: Folder, identity: Mapping[str, Any]):
        self.folder: Path = Path(folder)
        self._path = self.folder / _RECORD
        self._identity = dict(identity)
        self._lock: int | None = None
        self.anchors, self.scale = of_first(self._begin)

    def _begin(self) -> tuple[list[float] | None, float | None]:
        """Locks the folder and reads what is known of the fit."""
        mend(self._path)
        mend(self.checkpoints)
        self._check_content()
        try:
            self._lock = _locked(self.folder / _LOCK)
        except OSError as error:
            raise Refusal(
                f"{self.folder}: cannot be made and locked ({error.strerror}); pass ",
                "another ",
                Option("work", "<folder>"),
            ) from None
        try:
            return self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Work":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def checkpoints(self) -> Path:
        """Where orbax keeps the state."""
        return self.folder / _CHECKPOINTS

    def start(self, anchors: list[float], scale: float | None = None) -> None:
        """Writes down which fit the checkpoints will belong to, and how it begins.

        Args:
          anchors: ideal losses of the tasks.
          scale: at which the coefficients begin; None where no search has found it.
        """
        self.anchors, self.scale = anchors, scale
        of_first(lambda: self._write(anchors, scale))

    def _write(self, anchors: list[float], scale: float | None) -> None:
        content = {"identity": self._identity, "anchors": anchors, "scale": scale}
        with staged_file(self._path) as path:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Gives up the lock, so that another fit can use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Removes what belongs to the fit, and the folder unless more is in it."""
        of_first(self._remove)

    def _remove(self) -> None:
        if self.checkpoints.exists():  # never seen half removed
            discarded = beside(self.checkpoints, new_mark(), NEW)
            self.checkpoints.rename(discarded)
            shutil.rmtree(discarded, ignore_errors=True)
        for path in self._own_files():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # more is in it, or the next fit's lock
            self.folder.rmdir()

    def _own_files(self) -> tuple[Path, ...]:
        return (self._path, self._path.with_suffix(".new"), self.folder / _LOCK)

    def _check_content(self) -> None:
        """Refuses a folder that is neither empty nor that of a fit."""
        if not os.path.lexists(self.folder) or self._path.is_file():
            return
        if not self.folder.is_dir() or set(self.folder.iterdir()) - {
            *self._own_files()
        }:
            raise Refusal(
                f"{self.folder}: not that of a fit; pass another ",
                Option("work", "<folder>"),
            )

    def _read(self) -> tuple[list[float] | None, float | None]:
        """The anchors and the first scale of the same fit, as far as it was begun."""
        if not self._path.is_file():
            return None, None
        try:
            content = read_json(self._path)
            identity, anchors = dict(content["identity"]), list(content["anchors"])
            scale = content.get("scale")
            scale = None if scale is None else float(scale)
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(
                f"{self._path}: not the record of a fit ({error!r}); remove the folder"
            ) from None
        told = "checkpoints of a fit"
        refuse_other(self.folder, told, identity, self._identity, growing=("steps",))
        return anchors, scale


def refuse_other(
    folder: Folder,
    what: str,
    known: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    growing: Collection[str] = (),
) -> None:
    """Refuses a folder that holds what other settings have made.

    Args:
      folder: the folder.
      what: it holds.
      known: settings that are recorded there.
      settings: those of now.
      growing: names of numbers that may have become larger.
    """
    now = json.loads(json.dumps(settings))
    for name in sorted(known.keys() | now.keys()):
        before, after = known.get(name), now.get(name)
        if before == after or (name in growing and before <= after):
            continue
        is_value = isinstance(before, int | float | str)
        values = f" ({before}, now {after})" if is_value else ""
        raise Refusal(
            f"{folder}: holds {what} with other {name}{values}; remove it, or pass ",
            "another ",
            Option("work", "<folder>"),
        )


def _locked(path: Path) -> int | None:
    """Makes a file and its folder, and gives the descriptor that holds its lock.

    None on systems without such locks.
    """
    if fcntl is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        warnings.warn(
            f"{path.parent}: this system has no fcntl, so nothing keeps out a second "
            "fit; run one at a time in a folder",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_as(lock, path):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise Refusal(
                f"{path.parent}: another fit is running in it; let it end, or pass ",
                "another ",
                Option("work", "<folder>"),
            ) from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _is_open_as(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file; a fit that ends removes its own."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def work_identity(
    recipe: Mapping[str, Any],
    adapters: "Adapters",
    unlabeled: "Unlabeled",
    files: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything that determines a fit of a recorded recipe; folders may move."""
    return {
        **recipe,
        "max_length": unlabeled.max_length,
        "adapters": {
            name: {"sha256": dict(source.sha256), "scales": dict(source.scales)}
            for name, source in zip(adapters.names, adapters.sources, strict=True)
        },
        "order of tasks": list(adapters.names),  # that of anchors and preference
        "modules": list(adapters.stacks),
        "versions": {name: version(name) for name in ("jaxmerge", "jax")},
        **{role: entry["sha256"] for role, entry in files.items()},
    }


def work_folder(work: Folder | None, out: Folder) -> Path:
    """Where a fit keeps its checkpoints: as asked for, or beside its result."""
    place = Path(os.path.abspath(out))
    return Path(work or place.with_name(f"{place.name}.learning"))


def check_apart(work: Path, out: Path) -> None:
    """Refuses checkpoints in the folder that is to appear whole, or around it."""
    one, other = work.resolve(), out.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise Refusal(
            *(Option("work", str(work)), " is, holds or lies in "),
            *(Option("out", str(out)), "; choose a folder apart from it"),
        )
