"""Several processes that do one job: one of them writes, all agree, none waits for ever.

`jax.distributed` starts them; every process makes the same calls in the same order. What
this module adds is what collectives alone do not give: an error of one process is an
error of all, at the next place where they meet.
"""

import pickle
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")


def several() -> bool:
    """Whether this process is one of several that `jax.distributed` connects."""
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def writes() -> bool:
    """Whether this process writes files: the first one, or the only one."""
    import jax

    return not several() or jax.process_index() == 0


@contextmanager
def together() -> Generator[None, None, None]:
    """What fails inside in one process fails in all, when the last one is through.

    No process may be waiting for the others inside where another one may fail: what
    moves arrays between processes has to fail in all of them alike, or in none.

    Raises:
      Exception: that of the first process that failed; the others raise it too.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if not several():
            raise
        failure = error
    if not several():
        return
    from jax.experimental import multihost_utils

    failed = multihost_utils.process_allgather(np.array([failure is not None]))
    if not failed.any():
        return
    first = int(np.argmax(failed.reshape(-1)))
    told = _from(first, _as_sent(failure))
    raise failure if failure is not None else told


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


def fetched(tree: Value) -> Value:
    """A tree whose arrays can all be read here, also those of other processes.

    Every process has to ask for the same trees in the same order.
    """
    import jax

    if not several():
        return tree
    return jax.tree.map(_fetched, tree)


def _fetched(leaf: Any) -> Any:
    import jax
    from jax.experimental import multihost_utils

    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
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
