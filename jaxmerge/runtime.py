"""JAX as the commands use it: started late, with a compilation cache."""

import ctypes
import glob
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from jaxmerge.refusals import Refusal


def limit_threads() -> None:
    """A setting that must come before numpy and JAX are loaded; the user's own wins.

    One thread for each LAPACK call: JAX decomposes many small matrices at a time, and
    OpenBLAS would start threads in every one of them that fight for the cores.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_MAPPED_FROM = 4 << 20  # bytes; 1 MiB takes a third more processor time
OWN_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def return_freed_memory() -> None:
    """Lets glibc give the memory of large arrays back as soon as they are freed.

    By itself it keeps up to 32 MiB more with each size that was once freed, in every
    thread's arena. The whole process is changed, so this is for commands and not for
    libraries; other C libraries, and what the user has set, stay as they are.
    """
    if any(os.environ.get(name) for name in OWN_CHOICES):
        return
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
        return
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
    except (AttributeError, OSError):  # a C library without it
        return


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


class Compiling:
    """Whether JAX compiles a program at this moment, as far as its events tell."""

    _before = "/jax/core/compile/jaxpr_to_mlir_module_duration"
    _after = "/jax/core/compile/backend_compile_duration"

    def __init__(self) -> None:
        self.since: float | None = None
        self._listens = False

    def listen(self) -> None:
        """Follows the events of JAX from now on."""
        import jax

        if not self._listens:
            jax.monitoring.register_event_duration_secs_listener(self._heard)
            self._listens = True

    def _heard(self, event: str, *_: Any, **__: Any) -> None:
        if event == self._before:
            self.since = time.monotonic()
        elif event == self._after:
            self.since = None

    def seconds(self) -> float:
        """For how long; 0 where nothing is compiled."""
        since = self.since
        return 0.0 if since is None else time.monotonic() - since


compiling = Compiling()


_CONNECTED_BY = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def connect() -> None:
    """Connects this process with the others that the same command was started in.

    How many there are, and which one this is, is said by what started them, such as
    SLURM, Open MPI or a cloud TPU, or by three variables of the environment.

    Raises:
      Refusal: nothing says it, or the others are not found.
    """
    import jax

    given = {name: os.environ.get(name) for name in _CONNECTED_BY}
    address, count, index = given.values()
    try:
        jax.distributed.initialize(
            address,
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
        )
    except (RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refusal(
            f"the processes cannot be connected ({reason}); start them with srun, "
            "mpirun or on all hosts of a cloud TPU, or give each of them ",
            ", ".join(_CONNECTED_BY),
        ) from error


def start_jax(*, distributed: bool = False) -> None:
    """Loads JAX with its persistent compilation cache, whatever a program's size.

    Args:
      distributed: `connect` with the processes that were started together.
    """
    import jax

    compiling.listen()
    if distributed:
        connect()
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
    _replace_damaged_entries(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_DAMAGED = "Error reading persistent compilation cache entry for '(?P<program>[^']*)'"


def _replace_damaged_entries(folder: Path) -> None:
    """Removes what JAX cannot read, so that it is written again; JAX would keep it.

    A run that was stopped while it wrote leaves such entries. JAX warns of them by the
    name of the program, with which the names of its entries begin.
    """
    warnings.filterwarnings("always", message=_DAMAGED)
    others = warnings.showwarning

    def show(message: Warning | str, *where: Any, **how: Any) -> None:
        found = re.match(_DAMAGED, str(message))
        if found is None:
            others(message, *where, **how)
            return
        for entry in folder.glob(f"{glob.escape(found['program'])}-*"):
            entry.unlink(missing_ok=True)

    warnings.showwarning = show
