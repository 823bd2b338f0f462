"""What makes thousands of small programs cheap to compile, and to hold, in one process.

Nothing of it changes what is compiled, or what a test sees.
"""

import ctypes
import gc

import jax

MOST = 2000  # at a time, most of about a megabyte; some files compile thousands
FEW = 1500  # that the next file may have use for
LOWERED = 200  # programs that share a context of MLIR, which holds all their constants
# of glibc's malloc.h, with their values: memory that is freed is soon needed again
MALLOC = {"M_TRIM_THRESHOLD": (-1, 1 << 30), "M_TOP_PAD": (-2, 64 << 20)} | {
    "M_MMAP_THRESHOLD": (-3, 32 << 20)
}


def compile_cheaply() -> None:
    """Called once, before anything is compiled.

    No program is kept on disk: to find and load one costs as much as to compile it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
    for number, value in MALLOC.values():
        mallopt(number, value)
    gc.set_threshold(20_000, 20, 50)
    _share_contexts()


def _share_contexts() -> None:
    """A new context registers thousands of operations of MLIR, for each program anew.

    JAX has no setting for it. Where it makes contexts in another way, it goes on so.
    """
    from jax._src.interpreters import mlir

    make = getattr(mlir, "make_ir_context", None)
    if make is None:
        return
    count, context = 0, None

    def shared():
        nonlocal count, context
        if count % LOWERED == 0:
            context = make()
        count += 1
        return context

    mlir.make_ir_context = shared


def look_away() -> None:
    """The collector of garbage no longer goes through all that there is now."""
    gc.collect()
    gc.freeze()


def count() -> int:
    return len(jax.devices()[0].client.live_executables())


def forget() -> None:
    """Gives their memory back.

    They leave holes all over the heap, which the C library keeps unless it is asked to
    give them back to the system; glibc alone can be asked.
    """
    jax.clear_caches()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
