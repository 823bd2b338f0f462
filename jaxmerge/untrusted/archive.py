"""Zip archives of unknown origin: their directory is bounded and names a thing once."""

import struct
import zipfile
from pathlib import Path
from typing import Any

DAMAGED = (  # what zipfile and readers of the entries raise on damaged input
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
_LARGEST_DIRECTORY = 4 * 2**20  # bytes; python takes ten times as many to hold it
_SIZE = 5  # of the directory, in what zipfile finds at the end of an archive
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def open_archive(path: Path) -> zipfile.ZipFile:
    """An archive, open for reading.

    Raises:
      ValueError: a directory that is too long, or that names an entry twice.
      zipfile.BadZipFile: no archive, or a damaged one.
    """
    find: Any = zipfile._EndRecData  # type: ignore[attr-defined]
    with path.open("rb") as file:
        end = find(file)
    if end and end[_SIZE] > _LARGEST_DIRECTORY:
        raise ValueError("the archive has too many entries")
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    if len(set(names)) < len(names):
        archive.close()
        raise ValueError("the archive names an entry twice")
    return archive


def place_of(path: Path, entry: zipfile.ZipInfo) -> int:
    """Offset in the file of the first byte of an entry that is not compressed.

    Raises:
      ValueError: there is no entry.
    """
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size or not head.startswith(b"PK\x03\x04"):
        raise ValueError(f"the archive has no entry {entry.filename[:100]!r}")
    _, name, extra = _LOCAL_HEADER.unpack(head)
    return entry.header_offset + _LOCAL_HEADER.size + name + extra
