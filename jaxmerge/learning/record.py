"""What a fit read, as JSON values with digests."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxmerge.io import Adapters
from jaxmerge.io.files import sha256
from jaxmerge.learning.bases import Base
from jaxmerge.learning.recipe import Recipe
from jaxmerge.learning.unlabeled import Unlabeled

PHI_FILE, HISTORY_FILE = "phi.safetensors", "history.safetensors"


def files_read(
    base: Base, data: Path, unlabeled: Unlabeled, text_heads: Path | None
) -> dict[str, dict[str, Any]]:
    """Everything that a fit reads besides the adapters, with digests, by its role."""
    groups = {"base": (base.folder, base.files), "data": (data, unlabeled.files)}
    if text_heads is not None:
        groups["text heads"] = (text_heads.parent, (text_heads.name,))
    return {
        role: {
            "path": str(folder),
            "sha256": {name: sha256(folder / name) for name in names},
        }
        for role, (folder, names) in groups.items()
    }


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
