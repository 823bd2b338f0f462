"""Adapters on the Hub of Hugging Face: ``owner/name@revision:subfolder``.

Nothing is downloaded unless the caller asks for it. Then only the config and weights in
safetensors are, at one commit, which the record of a merge keeps. Of image models it is
the file under the name that diffusers gives it, or that a merge gives it.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxmerge.folders import Folder
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.files import CONFIG_FILE, SAFETENSORS_FILE, TORCH_FILE
from jaxmerge.io.image.file_kinds import WEIGHT_FILES
from jaxmerge.refusals import Refusal

_PIECE = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_ID = re.compile(
    rf"(?:hf:/+)?(?P<name>{_PIECE}/{_PIECE})"
    r"(?:@(?P<revision>[A-Za-z0-9._/-]{1,200}))?"
    r"(?::(?P<subfolder>[A-Za-z0-9._/-]{1,200}))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = (CONFIG_FILE, SAFETENSORS_FILE, f"{SAFETENSORS_FILE}.index.json")
_SHARDS = "adapter_model-?????-of-?????.safetensors"


class HubId(NamedTuple):
    """An adapter on the Hub.

    Attributes:
      name: ``owner/name`` of the repository.
      revision: branch, tag or commit; "" for the main branch.
      subfolder: of the repository; "" for its root.
    """

    name: str
    revision: str = ""
    subfolder: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        below = f":{self.subfolder}" if self.subfolder else ""
        return f"{self.name}{at}{below}"

    @property
    def as_path(self) -> Path:
        """What a task is named after where it has no name."""
        return Path("/", self.name, self.subfolder)


class Fetched(NamedTuple):
    """An adapter that was downloaded.

    Attributes:
      path: its folder on this machine.
      pinned: its id with the commit as revision.
    """

    path: Path
    pinned: HubId


def hub_id(text: str) -> HubId | None:
    """An id as a user writes it; None where a text is none.

    >>> hub_id("owner/name@v1.0:checkpoints/500")
    HubId(name='owner/name', revision='v1.0', subfolder='checkpoints/500')
    >>> hub_id("../name"), hub_id("owner/name:../other")
    (None, None)
    """
    found = _ID.fullmatch(text)
    if found is None:
        return None
    parts = (found["revision"] or "", found["subfolder"] or "")
    if any(piece in ("", ".", "..") for x in parts if x for piece in x.split("/")):
        return None
    return HubId(found["name"], *parts)


def meant_as_id(folder: Folder) -> HubId | None:
    """The id that stands where a folder may stand; None if it is a local path."""
    text = os.fspath(folder)
    if os.path.lexists(text) or os.path.isdir(os.path.dirname(text)):
        return None
    return hub_id(text)


def fetch(named: HubId) -> Fetched:
    """Downloads an adapter into the cache of ``huggingface_hub``, at one commit.

    Raises:
      AdapterError: there is no such adapter, it is in no safetensors file, or it cannot
        be downloaded.
      Refusal: ``huggingface_hub`` is not installed.
    """
    library = hub_library()
    try:
        info = library.HfApi().model_info(named.name, revision=named.revision or None)
        commit = str(info.sha)
        names = [file.rfilename for file in info.siblings or ()]
    except Exception as error:  # of many kinds, by the transport
        raise _failed(named, error) from error
    if not _COMMIT.fullmatch(commit):
        raise AdapterError(f"{named}: the Hub names no commit for it")
    below = f"{named.subfolder}/" if named.subfolder else ""
    _check_offered(named, below, names)
    try:
        folder = library.snapshot_download(
            repo_id=named.name,
            repo_type="model",
            revision=commit,
            allow_patterns=[below + name for name in (*_FILES, _SHARDS, *WEIGHT_FILES)],
        )
    except Exception as error:
        raise _failed(named, error) from error
    return Fetched(Path(folder) / named.subfolder, named._replace(revision=commit))


def hub_library() -> Any:
    """The package ``huggingface_hub``; Refusal, which says how to install it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise Refusal(
            "for the Hub the package huggingface_hub is needed: "
            'pip install "jaxmerge[hub]"'
        ) from error
    return huggingface_hub


def _check_offered(named: HubId, below: str, names: list[str]) -> None:
    """Refuses what has no adapter in safetensors, before anything is downloaded."""
    there = {name.removeprefix(below) for name in names if name.startswith(below)}
    if not WEIGHT_FILES.isdisjoint(there):
        return
    if CONFIG_FILE not in there:
        nested = [n for n in sorted(there) if n.endswith(f"/{CONFIG_FILE}")]
        found = [
            str(named._replace(subfolder=below + name.rpartition("/")[0]))
            for name in nested
        ]
        hint = f"; its subfolders do, give {listing(found)}" if found else ""
        raise AdapterError(f"{named}: holds no {CONFIG_FILE}{hint}")
    if there.isdisjoint(_FILES[1:]):
        pickled = TORCH_FILE in there
        why = f", only {TORCH_FILE}, which is not downloaded" if pickled else ""
        raise AdapterError(f"{named}: holds no {SAFETENSORS_FILE}{why}")


def _failed(named: HubId, error: Exception) -> AdapterError:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return AdapterError(
        f"{named}: cannot be downloaded ({type(error).__name__}: {first})"
    )
