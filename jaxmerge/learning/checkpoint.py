"""Fits that go on after a kill: orbax checkpoints that know what they belong to."""

import hashlib
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxmerge.disk import Mended, sync, sync_tree, trouble
from jaxmerge.folders import Folder
from jaxmerge.processes import alone, of_first, several, together, writes
from jaxmerge.refusals import Option, Refusal

_KEPT = 2  # a kill while the last one is written leaves the one before
_CONTENT = "content"  # the digest of what was computed, beside those of what it is of
_LIBRARIES = ("jax", "optax", "flax", "jaxmerge")  # versions decide how one traces


class CheckpointError(Refusal):
    """Checkpoints from which the fit that is asked for cannot go on."""


class Checkpoints:
    """The checkpoints of one fit in a folder; use as a context manager.

    Of several processes the first one reads and writes, and tells the others.

    Args:
      folder: created if needed.
      identity: digests of what determines the fit, see `fit_identity`.
    """

    def __init__(self, folder: Folder, identity: Mapping[str, str]):
        self._folder, self._identity = Path(folder).absolute(), dict(identity)
        self._versions = {name: version(name) for name in _LIBRARIES}

    def __enter__(self) -> "Checkpoints":
        with together():
            if writes():
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=_KEPT,
                    multiprocessing_options=alone(),
                    create=not several(),  # orbax lets no single process create it
                )
                self._folder.mkdir(parents=True, exist_ok=True)
                self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self

    def __exit__(self, *_: object) -> None:
        if writes():
            self._manager.close()

    def restore(
        self, state: Any, steps: int
    ) -> tuple[int, Any, dict[str, np.ndarray] | None]:
        """Number of steps, state and history of the latest checkpoint that is whole.

        Without one it gives 0, the given state and None. Later ones that are damaged
        are removed, and a warning says so.

        Raises:
          CheckpointError: the checkpoint belongs to another fit, and in what it
            differs; or it is further than ``steps``; or all are damaged.
        """
        done, found, history = of_first(lambda: self._latest(state, steps))
        if history is None:
            return done, state, None
        # on no device in particular: parameters decide on which
        return done, jax.tree.map(jnp.asarray, found), history

    def _latest(
        self, state: Any, steps: int
    ) -> tuple[int, Any, dict[str, np.ndarray] | None]:
        """As `restore`, with a state in NumPy; none where nothing was saved."""
        damaged: dict[int, Exception] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            if step > steps:
                raise CheckpointError(
                    f"{self._folder}: the checkpoint is at step {step}, beyond ",
                    Option("steps", str(steps)),
                    f"; ask for {step} or more, or choose another folder",
                )
            try:
                found = self._read(step, state)
            except MemoryError:
                raise
            except Exception as error:  # orbax has no word for what is damaged
                damaged[step] = error
                continue
            self._remove(damaged, step)
            return step, *found
        if not damaged:
            return 0, None, None
        step, error = next(iter(damaged.items()))
        if isinstance(error, CheckpointError):
            raise error
        raise CheckpointError(
            f"{self._folder}: no checkpoint in it can be read ({_first_line(error)} at "
            f"step {step}); remove the folder to begin again"
        ) from error

    def _read(self, step: int, state: Any) -> tuple[Any, dict[str, np.ndarray]]:
        identity = self._manager.restore(
            step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
        )["identity"]
        self._refuse_other(identity)
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
        expected = identity.get(_CONTENT)  # absent in those of version 0.1.0
        if expected not in (None, _digest(found["state"], found["history"])):
            raise ValueError("its numbers are not those that were saved")
        return jax.device_get(found["state"]), found["history"]

    def _remove(self, damaged: Mapping[int, Exception], kept: int) -> None:
        for step, error in damaged.items():
            self._manager.delete(step)
            warnings.warn(
                f"{self._folder}: the checkpoint of step {step} is damaged "
                f"({_first_line(error)}) and was removed; the fit goes on from that of "
                f"step {kept}",
                Mended,
                stacklevel=4,
            )

    def save(self, step: int, state: Any, history: dict[str, np.ndarray]) -> None:
        """Saves and waits until the checkpoint is complete on disk.

        Raises:
          CheckpointError: the disk takes no more.
        """
        with together():
            if writes():
                self._save(step, jax.device_get(state), history)

    def _save(self, step: int, state: Any, history: dict[str, np.ndarray]) -> None:
        content = {_CONTENT: _digest(state, history)}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    history=ocp.args.StandardSave(history),
                    identity=ocp.args.JsonSave(
                        self._identity | self._versions | content
                    ),
                ),
            )
            self._manager.wait_until_finished()
            sync_tree(self._folder / str(step))
            sync(self._folder)
        except Exception as error:
            reason = trouble(error)
            if reason is None:
                raise
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} cannot be written "
                f"({reason}); the same fit goes on from the one before it"
            ) from error

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


def _digest(*trees: Any) -> str:
    """SHA-256 of the arrays of some trees, with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        array = np.asarray(jax.device_get(leaf))
        place = jax.tree_util.keystr(path)
        digest.update(f"{place} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
