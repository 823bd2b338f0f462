"""What a fit read, as JSON values with digests."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxmerge.io import Adapters
from jaxmerge.io.files import sha256
from jaxmerge.jobs.learned_recipe import Recipe
from jaxmerge.tasks.bases import base_files
from jaxmerge.tasks.unlabeled import Unlabeled, data_files

PHI_FILE, HISTORY_FILE = "phi.safetensors", "history.safetensors"


def files_read(
    base: str | Path,
    data: str | Path,
    tasks: Sequence[str],
    text_heads: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Everything that a command reads besides the adapters, with digests, by its role.

    To be called once, before the files are loaded.

    Args:
      base: folder of the model.
      data: folder of the inputs.
      tasks: names of the adapters.
      text_heads: file of heads, which plays no part for a model of texts.

    Raises:
      ValueError: a file that is missing.
    """
    base, data = Path(base), Path(data)
    inputs, model_files = base_files(base)
    paths = data_files(data, tasks, inputs).values()
    groups = {
        "base": (base, model_files),
        "data": (data, [path.relative_to(data).as_posix() for path in paths]),
    }
    if text_heads is not None and inputs == "images":
        groups["text heads"] = (text_heads.parent, (text_heads.name,))
    return {
        role: {
            "path": str(folder),
            "sha256": {name: _digest(folder / name) for name in names},
        }
        for role, (folder, names) in groups.items()
    }


def _digest(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return sha256(path)


def fit_identity(
    recipe: Recipe,
    adapters: Adapters,
    unlabeled: Unlabeled,
    files: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything that determines a fit; folders may move."""
    return {
        **recipe.to_record(),
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
