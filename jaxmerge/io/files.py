"""Finding and opening the files of an adapter folder; nothing is trusted."""

import hashlib
import os
import re
import stat
from itertools import islice
from pathlib import Path
from typing import Any

from jaxmerge.io.errors import AdapterError, either, listing
from jaxmerge.io.foreign import format_of_files
from jaxmerge.refusals import Option
from jaxmerge.untrusted.json_text import read_json

CONFIG_FILE = "adapter_config.json"
SAFETENSORS_FILE = "adapter_model.safetensors"
TORCH_FILE = "adapter_model.bin"
INDEX = ".index.json"  # behind the name of a weight file: the index of its shards
_SHARD = re.compile(r"adapter_model-\d+-of-\d+\.(safetensors|bin)")


def weight_file(folder: Path, choice: str | None = None) -> Path:
    """The weight file of an adapter folder, or the index of its shards.

    Args:
      folder: adapter folder.
      choice: "safetensors" or "bin" where the folder has both.
    """
    names = {"safetensors": SAFETENSORS_FILE, "bin": TORCH_FILE}
    there = {
        key: [n for n in (name, name + INDEX) if os.path.lexists(folder / n)]
        for key, name in names.items()
    }
    found = [key for key in names if there[key]]
    if not found:
        raise AdapterError(f"{folder}: {_no_weights(folder)}")
    if choice is None and len(found) > 1:
        raise AdapterError(
            f"{folder}: holds both {there[found[0]][0]} and {there[found[1]][0]}, ",
            "which may be different runs; choose with ",
            *either("weight_file", "safetensors", "bin"),
        )
    if choice is not None and choice not in found:
        option = Option("weight_file", choice, quoted=True)
        raise AdapterError(f"{folder}: has no {names[choice]} (", option, ")")
    chosen = there[choice or found[0]]
    if len(chosen) > 1:
        raise AdapterError(
            f"{folder}: holds both {chosen[0]} and {chosen[1]}, which may be different "
            "runs; remove the one that is not meant"
        )
    return checked_file(folder / chosen[0])


def _no_weights(folder: Path) -> str:
    """What there is in a folder instead of weights."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"cannot be listed ({error.strerror})"
    shards = [name for name in names if _SHARD.fullmatch(name)]
    if shards:
        suffix = Path(shards[0]).suffix
        return (
            f"holds shards ({listing(shards)}) without their index "
            f"adapter_model{suffix}{INDEX}; copy that from where they came from"
        )
    found = format_of_files(names)
    if found:
        return f"no {SAFETENSORS_FILE} or {TORCH_FILE}; {found[0]} is {found[1]}"
    others = [name for name in names if name.endswith((".safetensors", ".bin"))]
    there = (
        f"it holds {listing(others)}; rename that if it is the adapter's weights"
        if others
        else "a merged full model or a tokenizer folder is not an adapter"
    )
    return f"no weights; expected {SAFETENSORS_FILE} or {TORCH_FILE} ({there})"


def first_entries(folder: Path, most: int) -> list[os.DirEntry[str]]:
    """Entries of a folder as the disk lists them, at most some; or its OSError."""
    with os.scandir(folder) as entries:
        return list(islice(entries, most))


def checked_file(path: Path) -> Path:
    """``path`` if it is a readable regular file with content; AdapterError if not."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise AdapterError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise AdapterError(f"{path}: the file is empty; download or save it again")
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as error:
        reason = (
            "a symbolic link to nothing"
            if path.is_symlink() and not path.exists()
            else error.strerror
        )
        raise AdapterError(f"{path}: cannot be read ({reason})") from error
    if start.startswith(b"version https://git-lfs"):
        raise AdapterError(
            f"{path}: a git-lfs pointer, not the weights; "
            "run `git lfs pull` in its repository or download the file itself"
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def read_config(folder: Path) -> dict[str, Any]:
    """The JSON object in ``adapter_config.json``; AdapterError if it is none."""
    return read_object(folder / CONFIG_FILE, largest=16 * 2**20, most=400_000)


def read_object(path: Path, **limits: int) -> dict[str, Any]:
    """The JSON object in a file within some limits; AdapterError if it holds none."""
    found = json_of(path, **limits)
    if not isinstance(found, dict):
        raise AdapterError(
            f"{path}: expected a JSON object, found {type(found).__name__}"
        )
    return found


def json_of(path: Path, **limits: int) -> Any:
    """The value of a JSON file; AdapterError if it is none, or is too large."""
    checked_file(path)
    try:
        return read_json(path, **limits)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: not valid JSON ({error})") from error
