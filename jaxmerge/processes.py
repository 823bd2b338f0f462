"""Several processes that do one job: one writes, all agree, none waits for ever.

`jax.distributed` connects them; every process makes the same calls in the same order.
What collectives alone do not give is added here: an error of one process is an error of
all, at the next place where they meet.
"""

import pickle
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from jaxmerge.refusals import Option, Refusal

Value = TypeVar("Value")


def several() -> bool:
    """Whether this process is one of several that `jax.distributed` connects."""
    jax = sys.modules.get("jax")  # what nobody has loaded connects nothing
    if jax is None or not jax.distributed.is_initialized():
        return False
    return jax.process_count() > 1


def writes() -> bool:
    """Whether this process writes files: the first one, or the only one."""
    if not several():
        return True
    import jax

    return jax.process_index() == 0


_told: list[Exception] = []  # the error that all processes know of, while it is raised


@contextmanager
def together() -> Generator[None, None, None]:
    """What fails inside in one process fails in all, where they meet next.

    They meet behind this, in every other ``together`` that the others come to before,
    and in `of_first`. Only what moves arrays between processes may not fail in some of
    them alone. A function can be decorated with it.

    Raises:
      Exception: that of the first process that failed; the others raise it too.
    """
    try:
        yield
    except Exception as error:
        if not _is_told(error):
            meet(error)
        raise
    meet()


def meet(failure: Exception | None = None) -> None:
    """Waits for the other processes; an error of one of them is raised in all.

    Args:
      failure: the error of this process.
    """
    if not several():
        return
    from jax.experimental import multihost_utils

    failed = multihost_utils.process_allgather(np.array([failure is not None]))
    if not failed.any():
        return
    error = _from(int(np.argmax(failed.reshape(-1))), _as_sent(failure))
    _told[:] = [error if failure is None else failure]
    raise _told[0]


def _is_told(error: BaseException | None) -> bool:
    """Whether the others know of an error, or of the one that led to it."""
    while error is not None and error not in _told:
        error = error.__cause__ or error.__context__
    return error is not None


def of_first(make: Callable[[], Value]) -> Value:
    """What the first process makes, in every process; an error is raised by all.

    Args:
      make: called in the first process alone; its result is sent as it is pickled.

    >>> of_first(lambda: {"rank": 16})
    {'rank': 16}
    """
    if not several():
        return make()
    value: Any = None
    with together():
        if writes():
            value = make()
    return _from(0, value)


def alone() -> Any:
    """Options of orbax with which this process waits for no other one."""
    import orbax.checkpoint as ocp

    if not several():
        return ocp.options.MultiprocessingOptions()
    import jax

    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=here,
        active_processes={here},
        barrier_sync_key_prefix=f"process{here}",
    )


def fetched(tree: Value) -> Value:
    """A tree whose arrays can all be read here, also those of other processes.

    Every process has to ask for the same trees in the same order.

    Raises:
      Refusal: an array of another process alone, which this one has no part of.
    """
    import jax

    return jax.tree.map(_fetched, tree) if several() else tree


def _fetched(leaf: Any) -> Any:
    import jax
    from jax.experimental import multihost_utils

    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if not leaf.addressable_shards:
        raise Refusal(
            "an array lies on a device of another process alone; give map_modules ",
            Option("gather", "True"),
            " for results that every process can read",
        )
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    return jax.numpy.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _from(process: int, value: Any) -> Any:
    """A value of one process, in every process."""
    import jax
    from jax.experimental import multihost_utils

    source = jax.process_index() == process
    sent = np.frombuffer(pickle.dumps(value), np.uint8) if source else None
    size = np.array(0 if sent is None else sent.size)
    size = int(multihost_utils.broadcast_one_to_all(size, is_source=source))
    blank = np.zeros(size, np.uint8)
    found = multihost_utils.broadcast_one_to_all(
        blank if sent is None else sent, is_source=source
    )
    return value if source else pickle.loads(np.asarray(found).tobytes())


def _as_sent(error: Exception | None) -> Exception | None:
    """An error as another process can rebuild it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
