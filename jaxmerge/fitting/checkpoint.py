"""Fits that go on after a kill: orbax checkpoints that know what they belong to."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_KEPT = 2  # a kill while the last one is written leaves the one before


def fingerprint(**parts: Any) -> dict[str, str]:
    """Digests of structure, shapes, types and values, by the name of the part."""
    digests = {}
    for name, tree in parts.items():
        leaves, structure = jax.tree.flatten(tree)
        digest = hashlib.sha256(str(structure).encode())
        for leaf in leaves:
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digests[name] = digest.hexdigest()
    return digests


class Checkpoints:
    """The checkpoints of one fit in a folder; use as a context manager."""

    def __init__(self, folder: str | Path, identity: Mapping[str, str]):
        self._folder, self._identity = Path(folder).absolute(), dict(identity)

    def __enter__(self) -> "Checkpoints":
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT, create=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def restore(self, state: Any) -> tuple[int, Any, dict[str, np.ndarray] | None]:
        """Steps done, state and history of the latest complete checkpoint.

        Without one it gives 0, the given state and None.

        Raises:
          ValueError: the checkpoint belongs to another fit; says in what it differs.
        """
        step = self._manager.latest_step()
        if step is None:
            return 0, state, None
        saved = self._manager.restore(
            step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
        )
        for part, digest in self._identity.items():
            if saved.identity.get(part) != digest:
                raise ValueError(
                    f"{self._folder}: checkpoints of another fit, its {part} differ; "
                    "choose another folder or remove this one"
                )
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(shapes),
                history=ocp.args.StandardRestore(),
            ),
        )
        return step, found.state, found.history

    def save(self, step: int, state: Any, history: dict[str, np.ndarray]) -> None:
        """Saves and waits until the checkpoint is complete on disk."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                history=ocp.args.StandardSave(history),
                identity=ocp.args.JsonSave(self._identity),
            ),
        )
        self._manager.wait_until_finished()
