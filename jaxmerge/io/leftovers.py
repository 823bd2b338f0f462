"""What a run that was stopped left beside its target, found and mended by the next.

A run fills a folder ``.NAME.MARK.new`` beside its target NAME, which it keeps locked.
Where two names cannot be exchanged at once, the folder that is replaced is for a moment
``.NAME.MARK.old``. Whatever bears such a name and is locked by nobody is left over.
"""

import os
import re
import shutil
import uuid
import warnings
from pathlib import Path

from jaxmerge.disk import Mended, claim, rename_new, sync
from jaxmerge.folders import Folder

NEW, OLD = "new", "old"


def new_mark() -> str:
    """A mark that no other run has."""
    return uuid.uuid4().hex[:12]


def beside(target: Path, mark: str, kind: str) -> Path:
    """Where a run keeps what is not yet, or no longer, at its target."""
    return target.with_name(f".{target.name}.{mark}.{kind}")


def mend(target: Folder) -> None:
    """Restores or removes what stopped runs left of a target, and warns of each.

    What was replaced but has no successor is restored; everything else is removed.
    Nothing that belongs to a running process is touched.
    """
    target = Path(os.path.abspath(target))
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.({NEW}|{OLD})")
    try:
        found = [name for name in os.listdir(target.parent) if pattern.fullmatch(name)]
    except OSError:
        return
    for name in sorted(
        found, key=lambda name: name.endswith(NEW)
    ):  # the old ones first
        _mend(target.with_name(name), target)


def _mend(left: Path, target: Path) -> None:
    restorable = left.suffix == f".{OLD}" and not os.path.lexists(target)
    try:
        lock = claim(left)
    except OSError:  # a running process has it, or it is gone already, or no folder
        return
    if lock is None:
        what = f"rename it to {target.name} to have it back, or " if restorable else ""
        _say(f"{left}: of a stopped run, or of one that is running; {what}remove it")
        return
    try:
        if restorable:
            rename_new(left, target)
            sync(target.parent)
            _say(f"{target}: restored from {left.name}, where a stopped run left it")
        elif not _removed_if_empty(left):
            shutil.rmtree(left)
            _say(f"{left}: removed; a stopped run left it")
    except OSError as error:
        _say(f"{left}: left by a stopped run, cannot be mended ({error.strerror})")
    finally:
        os.close(lock)


def _removed_if_empty(folder: Path) -> bool:
    """Nothing is lost with it: a run that has just made it makes another."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _say(message: str) -> None:
    warnings.warn(message, Mended, stacklevel=2)
