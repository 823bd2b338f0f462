"""Fits that go on after a kill: orbax checkpoints that know what they belong to."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxmerge.folders import Folder
from jaxmerge.refusals import Option, Refusal

_KEPT = 2  # a kill while the last one is written leaves the one before
_LIBRARIES = ("jax", "optax", "flax", "jaxmerge")  # versions decide how one traces


class CheckpointError(Refusal):
    """Checkpoints from which the fit that is asked for cannot go on."""


class Checkpoints:
    """The checkpoints of one fit in a folder; use as a context manager.

    Args:
      folder: created if needed.
      identity: digests of what determines the fit, see `fit_identity`.
    """

    def __init__(self, folder: Folder, identity: Mapping[str, str]):
        self._folder, self._identity = Path(folder).absolute(), dict(identity)
        self._versions = {name: version(name) for name in _LIBRARIES}

    def __enter__(self) -> "Checkpoints":
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT, create=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def restore(
        self, state: Any, steps: int
    ) -> tuple[int, Any, dict[str, np.ndarray] | None]:
        """Number of steps, state and history of the latest complete checkpoint.

        Without one it gives 0, the given state and None.

        Raises:
          CheckpointError: the checkpoint belongs to another fit, and in what it
            differs; or it is further than ``steps``.
        """
        step = self._manager.latest_step()
        if step is None:
            return 0, state, None
        saved = self._manager.restore(
            step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
        )
        self._refuse_other(saved["identity"])
        if step > steps:
            raise CheckpointError(
                f"{self._folder}: the checkpoint is at step {step}, beyond ",
                Option("steps", str(steps)),
                f"; ask for {step} or more, or choose another folder",
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
        # as at the start, on no device in particular: parameters decide on which
        state = jax.tree.map(lambda x: jnp.asarray(jax.device_get(x)), found["state"])
        return step, state, found["history"]

    def save(self, step: int, state: Any, history: dict[str, np.ndarray]) -> None:
        """Saves and waits until the checkpoint is complete on disk."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                history=ocp.args.StandardSave(history),
                identity=ocp.args.JsonSave(self._identity | self._versions),
            ),
        )
        self._manager.wait_until_finished()

    def _refuse_other(self, saved: Mapping[str, str]) -> None:
        changed = [
            f"{name} {saved.get(name, 'unknown')} is now {now}"
            for name, now in self._versions.items()
            if saved.get(name) != now
        ]
        for part, digest in self._identity.items():
            if saved.get(part) == digest:
                continue
            may = f" (or {', '.join(changed)}, which may be why)" if changed else ""
            raise CheckpointError(
                f"{self._folder}: checkpoints of another fit, which differs in its "
                f"{part}{may}; choose another folder or remove this one"
            )
