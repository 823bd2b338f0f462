"""The state of a training loop in a file, so that a run that was stopped goes on."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def save_state(path: Path, done: int, state: Any, *, identity: str = "") -> None:
    """Replaces the file at once.

    Args:
      path: a safetensors file.
      done: finished steps.
      state: a pytree of arrays.
      identity: what the state belongs to.
    """
    leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    fresh = path.with_suffix(".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(leaves | {"steps": np.array(done)}, fresh, metadata={"of": identity})
    fresh.replace(path)


def restored_state(path: Path, state: Any, *, identity: str = "") -> tuple[int, Any]:
    """Finished steps and the state after them; those given if there is no file.

    Args:
      path: that `save_state` wrote.
      state: at the start.
      identity: as it was saved.

    Raises:
      ValueError: the file belongs to something else.
    """
    if not path.is_file():
        return 0, state
    stored = load_file(path)
    with safe_open(path, "numpy") as file:
        saved = (file.metadata() or {}).get("of", "")
    leaves, structure = jax.tree.flatten(state)
    found = [stored[str(i)] for i in range(len(stored) - 1)]
    if [x.shape for x in found] != [x.shape for x in leaves] or saved != identity:
        raise ValueError(
            f"{path}: of another model or other steps; remove it to start again"
        )
    return int(stored["steps"]), jax.tree.unflatten(structure, map(jnp.asarray, found))
