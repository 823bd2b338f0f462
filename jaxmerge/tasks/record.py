"""What a job read beside the adapters, as JSON values with digests."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxmerge.disk import Unchanged
from jaxmerge.folders import Folder
from jaxmerge.io.files import sha256
from jaxmerge.io.options import TaskType
from jaxmerge.refusals import Refusal
from jaxmerge.tasks.bases import base_files
from jaxmerge.tasks.unlabeled import data_files

PHI_FILE, HISTORY_FILE = "phi.safetensors", "history.safetensors"
Groups = dict[str, tuple[Path, Sequence[str]]]  # role -> folder and names of files


@contextmanager
def steady(
    base: Folder,
    data: Folder,
    tasks: Sequence[str],
    text_heads: Path | None = None,
    task_type: TaskType = "classification",
) -> Generator[Groups, None, None]:
    """Gives `names_read` and refuses, in the end, files that have changed meanwhile."""
    groups = names_read(base, data, tasks, text_heads, task_type)
    unchanged = Unchanged(
        folder / name for folder, names in groups.values() for name in names
    )
    yield groups
    unchanged.refuse()


def digests(groups: Groups) -> dict[str, dict[str, Any]]:
    """Everything that a command reads besides the adapters, with digests, by its role.

    To be called once, before the files are loaded, where they are `steady`.

    Raises:
      ValueError: a file that is missing.
    """
    return {
        role: {
            "path": str(folder),
            "sha256": {name: _digest(folder / name) for name in names},
        }
        for role, (folder, names) in groups.items()
    }


def names_read(
    base: Folder,
    data: Folder,
    tasks: Sequence[str],
    text_heads: Path | None = None,
    task_type: TaskType = "classification",
) -> Groups:
    """The files that a command reads besides the adapters, by their role.

    Args:
      base: folder of the model.
      data: folder of the inputs.
      tasks: names of the adapters.
      text_heads: file of heads, which plays no part for a model of texts.
      task_type: what the adapters are of.

    Raises:
      ValueError: a base that cannot be used, or a task without a file or with two.
    """
    base, data = Path(base), Path(data)
    inputs, model_files = base_files(base, task_type)
    paths = data_files(data, tasks, inputs).values()
    groups: Groups = {
        "base": (base, model_files),
        "data": (data, [path.relative_to(data).as_posix() for path in paths]),
    }
    if text_heads is not None and inputs == "images":
        groups["text heads"] = (text_heads.parent, (text_heads.name,))
    return groups


def _digest(path: Path) -> str:
    if not path.is_file():
        raise Refusal(f"{path}: no such file")
    return sha256(path)
