"""Memory of compiled programs, each of which takes more than a megabyte."""

import ctypes

import jax

MOST = 1500  # at a time; thousands of small ones are compiled in some files


def count() -> int:
    return len(jax.devices()[0].client.live_executables())


def forget() -> None:
    """Gives their memory back.

    They leave holes all over the heap, which the C library keeps unless it is asked to
    give them back to the system; glibc alone can be asked.
    """
    jax.clear_caches()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
