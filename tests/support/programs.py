"""Compiled programs: kept on disk in a run, in memory only while a file needs them."""

import ctypes
import tempfile

import jax

MOST = 2000  # at a time, most of about a megabyte; some files compile thousands
FEW = 700  # that the next file may have use for


def keep_on_disk() -> tempfile.TemporaryDirectory:
    """What one file has compiled the next one loads, in the same process.

    The folder is there as long as what is returned.
    """
    folder = tempfile.TemporaryDirectory(prefix="programs_of_tests_")
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def count() -> int:
    return len(jax.devices()[0].client.live_executables())


def forget() -> None:
    """Gives their memory back.

    They leave holes all over the heap, which the C library keeps unless it is asked to
    give them back to the system; glibc alone can be asked.
    """
    jax.clear_caches()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
