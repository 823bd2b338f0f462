"""JAX as the commands use it: started late, with a compilation cache."""

import os
import sys
from pathlib import Path


def limit_threads() -> None:
    """A setting that must come before numpy and JAX are loaded; the user's own wins.

    One thread for each LAPACK call: JAX decomposes many small matrices at a time, and
    OpenBLAS would start threads in every one of them that fight for the cores.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def cache_folder() -> Path | None:
    """Where compiled programs are kept, None if they are not.

    ``JAXMERGE_CACHE`` names the folder (empty: no cache); otherwise it is
    ``jaxmerge/programs`` in the user's cache directory.
    """
    chosen = os.environ.get("JAXMERGE_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    if not os.environ.get("XDG_CACHE_HOME"):
        return Path.home() / ".cache" / "jaxmerge" / "programs"
    return Path(os.environ["XDG_CACHE_HOME"]) / "jaxmerge" / "programs"


def start_jax() -> None:
    """Loads JAX with its persistent compilation cache, whatever a program's size."""
    import jax

    folder = cache_folder()
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        print(
            f"note: {folder} is not writable, so programs are compiled anew in every "
            "run; set JAXMERGE_CACHE to another folder",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
