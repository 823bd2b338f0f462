"""A merged folder to the Hub of Hugging Face, when it is asked for."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmerge.folders import Folder
from jaxmerge.io.errors import listing
from jaxmerge.io.files import CONFIG_FILE, SAFETENSORS_FILE
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.hub_ids import hub_id, hub_library
from jaxmerge.io.image.file_kinds import WEIGHT_FILES
from jaxmerge.io.output import DELTA_FILE
from jaxmerge.io.places import folder_place
from jaxmerge.io.replaceable import CARD_FILE
from jaxmerge.refusals import Option, Refusal

_PATTERNS = (CONFIG_FILE, SAFETENSORS_FILE, CARD_FILE, "heads/*.safetensors")


@dataclass(frozen=True)
class Pushed:
    """A folder that was uploaded, or for a dry run would be.

    Attributes:
      repository: ``owner/name``.
      files: names of the files.
      commit: that of the upload, "" where nothing was uploaded.
      url: where it is now, "" where nothing was uploaded.
    """

    repository: str
    files: tuple[str, ...]
    commit: str = ""
    url: str = ""

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**self.__dict__, "files": list(self.files)}


def push(
    folder: Folder,
    repository: str,
    *,
    public: bool = False,
    record: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Uploads a merged adapter to the Hub: its config, weights, card and heads.

    Of a merge of image models these are its file and its card.

    Args:
      folder: written by `jaxmerge.merge` or `jaxmerge.learn`, or any adapter.
      repository: ``owner/name``; created, private unless ``public``.
      public: anybody may read it.
      record: upload jaxmerge.json too, with which others can verify the merge. It names
        the inputs by their paths on this machine.
      force: upload to a repository that exists already.
      dry_run: upload nothing, say which files would be.

    Returns:
      `Pushed`.

    Raises:
      Refusal: no adapter, no name of a repository, or one that exists; no package
        ``huggingface_hub``; what the Hub refuses.
    """
    path = folder_place(folder)
    named = hub_id(repository)
    if named is None or str(named) != repository or named.revision or named.subfolder:
        raise Refusal(f"{repository!r}: expected the name of a repository, owner/name")
    patterns = [*_PATTERNS, *WEIGHT_FILES, *([RECORD_FILE] if record else [])]
    files = sorted(
        found.relative_to(path).as_posix()
        for pattern in patterns
        for found in path.glob(pattern)
    )
    _check_adapter(path, files)
    if dry_run:
        return Pushed(repository, tuple(files))
    hub = hub_library().HfApi()
    try:
        if not hub.repo_exists(repository):
            hub.create_repo(repository, private=not public)
        elif not force:
            raise Refusal(
                f"{repository}: exists already; to add the files to it give ",
                Option("force", "True"),
            )
        done = hub.upload_folder(
            repo_id=repository,
            folder_path=path,
            allow_patterns=files,
            commit_message="A merge of adapters by jaxmerge",
        )
    except Refusal:
        raise
    except Exception as error:  # of many kinds, by the transport
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise Refusal(
            f"{repository}: cannot be uploaded ({type(error).__name__}: {first})"
        ) from error
    return Pushed(repository, tuple(files), str(done.oid), str(done.commit_url))


def _check_adapter(path: Path, files: Collection[str]) -> None:
    """Refuses a folder that holds no adapter, by what it holds instead."""
    if {CONFIG_FILE, SAFETENSORS_FILE} <= {*files} or not WEIGHT_FILES.isdisjoint(
        files
    ):
        return
    if (path / DELTA_FILE).is_file():
        raise Refusal(
            f"{path}: holds weight deltas, which no library loads; put them into their "
            "base (`jaxmerge.bake`) and upload that model"
        )
    expected = listing([*sorted(WEIGHT_FILES)])
    raise Refusal(
        f"{path}: holds no {CONFIG_FILE} with {SAFETENSORS_FILE}, and no file of image "
        f"models, {expected}"
    )
