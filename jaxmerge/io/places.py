"""Where an adapter is: its folder, or what was given instead and what to give."""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxmerge.folders import Folder
from jaxmerge.io.bridges.keras import keras_file
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.files import CONFIG_FILE, first_entries
from jaxmerge.io.foreign import format_of_file, format_of_keys
from jaxmerge.io.image.file_kinds import kind_of_file
from jaxmerge.io.tensors import open_tensors
from jaxmerge.refusals import Option
from jaxmerge.untrusted.text import is_plain

_DEPTH, _MOST_FOLDERS = 3, 1000  # of a search below a folder
_ARCHIVE = re.compile(r".+\.(zip|tar|tgz|tar\.gz|tar\.bz2|tar\.xz|7z|rar|gz)")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_PIECE = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(
    rf"(?:(?:https?:/+)?(?:huggingface\.co|hf\.co)/|hf:/+)({_PIECE}/{_PIECE})(?:[/@].*)?"
    rf"|({_PIECE}/{_PIECE})(?:[@:].*)?"
)


def adapter_place(folder: Folder) -> Path:
    """The folder, or the LoRA file of an image model; AdapterError if it is neither.

    The message says what to give instead.
    """
    path = Path(folder)
    if not is_plain(os.path.abspath(path)):
        raise AdapterError(
            f"{str(path)!r}: a path with control characters, or that is not in UTF-8, "
            "so that no record can name it; rename its folders"
        )
    try:
        if path.is_dir():
            return path
        exists = os.path.lexists(path)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{str(folder)!r}: not a usable path ({error})") from error
    if exists and kind_of_file(path) is None and keras_file(path) is None:
        raise AdapterError(f"{path}: {_file_instead(path)}")
    if exists:
        return path
    raise AdapterError(f"{path}: no such folder", *_nothing_there(os.fspath(folder)))


def folder_place(folder: Folder) -> Path:
    """The folder; AdapterError if it is none, as of `adapter_place`."""
    path = adapter_place(folder)
    if path.is_file():
        raise AdapterError(f"{path}: is a file; give a folder")
    return path


def _file_instead(path: Path) -> str:
    """What to give instead of a file."""
    if (path.parent / CONFIG_FILE).exists():
        return f"not a folder; give the folder that holds it, {path.parent}"
    if _ARCHIVE.fullmatch(path.name.lower()):
        return "an archive, not a folder; unpack it and give the folder"
    says = format_of_file(path.name)
    if path.suffix in _WEIGHTS and path.is_file():
        try:
            says = format_of_keys(open_tensors(path).infos, alone=True) or says
        except AdapterError:
            says = says or "not a folder, and not a complete weight file"
    return says or f"not a folder; give the folder that holds {CONFIG_FILE}"


def _nothing_there(text: str) -> tuple[str | Option, ...]:
    """Further parts of the message that a path names nothing."""
    if re.fullmatch(r"[+-]?\d*\.?\d+(e[+-]?\d+)?", text):
        weights = Option("weights", "<number>,<number>")
        return ("; if it is meant as a weight, give all weights as one ", weights)
    pieces = [piece for piece in re.split(r"[,;\s]+", text) if piece]
    there = [piece for piece in pieces if os.path.isdir(piece)]
    if len(pieces) > 1 and there:
        verb = "are folders" if there[1:] else "is one"
        return (f", but {listing(there)} {verb}; give each folder for itself",)
    if text.startswith("~") and os.path.isdir(os.path.expanduser(text)):
        return (f"; give {os.path.expanduser(text)}, as ~ stands for itself in quotes",)
    hub = _HUB_ID.fullmatch(text)
    if hub and not os.path.isdir(os.path.dirname(text)):
        name = hub[1] or hub[2]
        return (
            "; if it is an adapter on the Hub, download it first: "
            f"`hf download {name}` prints the folder to give; or give ",
            Option("hub", "True"),
            " to have it downloaded",
        )
    return ()


@contextmanager
def naming_nested(folder: Path) -> Generator[None, None, None]:
    """What is refused for lack of an adapter names subfolders that hold one, if any."""
    try:
        yield
    except AdapterError:
        _refuse_nested(folder)
        raise


def _refuse_nested(folder: Path) -> None:
    """AdapterError that names the subfolders which hold an adapter, if any do."""
    found = sorted(_below(folder), key=_natural)
    if not found:
        return
    shown = [os.fspath(folder / name) for name in found]
    if len(found) == 1:
        raise AdapterError(
            f"{folder}: the adapter lies in a subfolder; give {shown[0]}"
        )
    checkpoints = [s for s, n in zip(shown, found, strict=True) if "checkpoint-" in n]
    last = f"; the last checkpoint is {checkpoints[-1]!r}" if checkpoints else ""
    raise AdapterError(
        f"{folder}: holds no adapter itself, but {len(found)} subfolders do "
        f"({listing(shown)}); give those that are meant{last}"
    )


def _below(folder: Path) -> Iterator[str]:
    """Subfolders with a config of their own, within bounds."""
    waiting, seen = [("", 0)], 0
    while waiting and seen < _MOST_FOLDERS:
        name, depth = waiting.pop(0)
        seen += 1
        try:
            entries = first_entries(folder / name, _MOST_FOLDERS)
        except OSError:
            continue
        if name and any(entry.name == CONFIG_FILE for entry in entries):
            yield name
        elif depth < _DEPTH:
            waiting += [
                (os.path.join(name, entry.name), depth + 1)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
            ]


def _natural(name: str) -> list[str]:
    """Orders checkpoint-500 before checkpoint-1000."""
    return [
        piece.zfill(20) if piece.isdecimal() else piece
        for piece in re.split(r"(\d+)", name)
    ]
