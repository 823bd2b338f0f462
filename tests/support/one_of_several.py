"""What each of several processes does in the tests of working together.

    python one_of_several.py FOLDER TASK...

Which process it is, and of how many, stands in the environment, as for a command with
``--distributed``. It writes what it found into ``FOLDER/found/<its number>.json``.
"""

import contextlib
import errno
import faulthandler
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from reference import QUICK_XLA

import jaxmerge as jm
from jaxmerge.io.safetensors_writer import SafetensorsWriter
from jaxmerge.processes import of_first, together
from jaxmerge.runtime import start_jax

MERGER = jm.full_space(jm.dare(jm.elect, density=0.5))
TIMEOUT = 400  # seconds, where other work fills the machine
RANKS = (2, 3)
SIZES = {"q": (6, 5), "k": (6, 5), "v": (6, 5), "o": (5, 7)}


def start(count, folder, *tasks):
    """Runs this file in several processes; gives what each of them found."""
    (folder / "found").mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(QUICK_XLA),
        "JAXMERGE_CACHE": "",
    }
    command = [sys.executable, __file__, str(folder), *tasks]
    with contextlib.ExitStack() as stack:
        names = [folder / "found" / f"{index}.log" for index in range(count)]
        logs = [stack.enter_context(name.open("w")) for name in names]
        running = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    env={**common, "JAX_PROCESS_ID": str(index)},
                    stdout=log,
                    stderr=log,
                )
            )
            for index, log in enumerate(logs)
        ]
        for process in running:
            stack.callback(process.kill)
        codes = [process.wait(TIMEOUT) for process in running]
    told = [name.read_text() for name in names]
    assert codes == [0] * count, "\n".join(told)
    files = [folder / "found" / f"{index}.json" for index in range(count)]
    return [json.loads(file.read_text()) for file in files]


def stacks():
    rng = np.random.default_rng(0)
    return {
        name: jm.stack_adapters(
            [(rng.normal(size=(m, r)), rng.normal(size=(r, n))) for r in RANKS],
            dtype=np.float32,
        )
        for name, (m, n) in SIZES.items()
    }


def merge_modules(folder):
    """Results on the devices of all processes, gathered and where they are."""
    mesh, given = jm.module_mesh(), stacks()
    key = jax.random.key(0)
    gathered = jm.map_modules(MERGER, given, key=key, mesh=mesh, gather=True)
    apart = jm.map_modules(MERGER, given, key=key, mesh=mesh)
    here = [name for name, x in apart.items() if x.is_fully_addressable]
    return {
        "merged": {
            name: np.asarray(jm.dense(x)).tolist() for name, x in gathered.items()
        },
        "here": here,
        "refused": refused(lambda: jm.io.save_orbax(folder / "apart", apart)),
    }


def refused(call):
    """The error of a call that is meant to fail in every process."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def save(folder):
    """Orbax, and errors of one process alone."""
    given, out = stacks(), folder / "orbax"
    jm.io.save_orbax(out, given)
    back = jm.io.load_orbax(out)

    @together()
    def fail_in(process):
        of_first(lambda: None)
        if jax.process_index() == process:
            raise KeyError(f"of process {process}")
        of_first(lambda: None)

    return {
        "same": all(np.array_equal(back[name].b, x.b) for name, x in given.items()),
        "again": refused(lambda: jm.io.save_orbax(out, given)),
        "failures": [refused(lambda i=i: fail_in(i)) for i in range(2)],
        "together": jax.process_count(),
    }


def merge_folders(folder):
    """A whole merge, with a disk that takes no more in between."""
    adapters = sorted((folder / "adapters").iterdir())
    whole = "elect|trim_whole_model(density=0.5)|core|pico|scale(0.5)"
    pipeline = "concat|scale(0.5)" if jax.process_count() == 2 else whole
    merged = jm.merge(adapters, pipeline, out=folder / "merged")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writes, SafetensorsWriter.write = SafetensorsWriter.write, full
    error = refused(lambda: jm.merge(adapters, pipeline, out=folder / "full"))
    SafetensorsWriter.write = writes
    return {"report": merged.saved.to_json(), "size": merged.size, "full": error}


def fit_and_resume(folder):
    import fit_problem

    def fit(steps):
        batches = (
            {task: np.repeat(x, 2, axis=0)[:4] for task, x in batch.items()}
            for batch in itertools.islice(fit_problem.make_batches(), 12)
        )
        return fit_problem.run(
            "adamerging",
            steps=steps,
            batches=batches,
            mesh=jm.data_mesh(),
            checkpoint=folder / "fit",
        )

    fit(4)
    fitted = fit(8)
    placed = {len(phi.sharding.device_set) for phi in fitted.phis.values()}
    return {
        "objective": fitted.history.objective.tolist(),
        "phis": {name: np.asarray(phi).tolist() for name, phi in fitted.phis.items()},
        "devices": sorted(placed),
    }


def collect(folder):
    model = {"base": folder / "base", "data": folder / "data"}
    adapters = sorted((folder / "bert").iterdir())
    found = jm.collect(adapters, **model, out=folder / "stats", batch=4)
    return {"tokens": found.written.record["tasks"], "size": found.size}


def learn(folder):
    model = {"base": folder / "base", "data": folder / "data"}
    adapters = sorted((folder / "bert").iterdir())
    found = jm.learn(
        *(adapters, "tara_a"), **model, out=folder / "learned", steps=12, batch=4
    )
    return {"objective": found.objective, "files": found.saved.files}


if __name__ == "__main__":
    faulthandler.dump_traceback_later(TIMEOUT - 60)  # says in its log where it waits
    start_jax(distributed=True)
    place = Path(sys.argv[1])
    found = {task: globals()[task](place) for task in sys.argv[2:]}
    result = place / "found" / f"{jax.process_index()}.json"
    result.write_text(json.dumps(found))
