"""Small adapters for the tests of jaxmerge.io, written with numpy alone."""

import json
import re
import subprocess
import sys
import time
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, settings

from jaxmerge import io
from jaxmerge.types import LowRank

SAFE, BIN, CONFIG = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter_config.json",
)
KEY_A = "base_model.model.h.0.fc.lora_A.weight"
KEY_B = "base_model.model.h.0.fc.lora_B.weight"
CALM = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

BASE = {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": "org/base",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["fc"],
}


def random(*shape, seed=0, dtype=np.float32):
    values = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return values.astype(np.float32).astype(dtype)


def linear(module="h.0.fc", *, m=6, n=5, r=4, seed=0, dtype=np.float32, bias=False):
    """Tensors of one linear module, by key."""
    start = f"base_model.model.{module}."
    tensors = {
        f"{start}lora_A.weight": random(r, n, seed=seed, dtype=dtype),
        f"{start}lora_B.weight": random(m, r, seed=seed + 1, dtype=dtype),
    }
    if bias:
        tensors[f"{start}lora_B.bias"] = random(m, seed=seed + 2, dtype=dtype)
    return tensors


def conv(module="h.0.conv", *, m=6, channels=3, kernel=(3, 3), r=4, seed=0):
    start = f"base_model.model.{module}."
    ones = (1,) * len(kernel)
    return {
        f"{start}lora_A.weight": random(r, channels, *kernel, seed=seed),
        f"{start}lora_B.weight": random(m, r, *ones, seed=seed + 1),
    }


def embedding(module="h.embed", *, vocabulary=11, dim=6, r=4, seed=0):
    start = f"base_model.model.{module}."
    return {
        f"{start}lora_embedding_A": random(r, vocabulary, seed=seed),
        f"{start}lora_embedding_B": random(dim, r, seed=seed + 1),
    }


def write(folder: Path, tensors=None, *, raw_config=None, **config) -> Path:
    """Writes an adapter folder; ``config`` overrides `BASE`, None removes nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {**BASE, **config} if raw_config is None else raw_config
    (folder / "adapter_config.json").write_text(json.dumps(values))
    safetensors.numpy.save_file(
        linear() if tensors is None else tensors, folder / "adapter_model.safetensors"
    )
    return folder


def header_file(header, data=b"", length=None) -> bytes:
    """A safetensors file by hand, of a header as values or bytes and a length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


def put(path: Path, text="x") -> None:
    """Writes a text, into folders that may be missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def edit(path: Path, change) -> None:
    """Changes a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def update(stack, task=0) -> np.ndarray:
    """The dense update of one task, in float64."""
    return product(stack.b[task], stack.a[task])


def product(b, a, scale=1.0) -> np.ndarray:
    return scale * (np.asarray(b, np.float64) @ np.asarray(a, np.float64))


def concatenated(stack, weights=None) -> LowRank:
    """The weighted sum of the tasks as concatenated factors, with numpy."""
    weights = np.ones(len(stack.ranks)) if weights is None else np.asarray(weights)
    tasks = stack.present
    bs = [weights[t] * np.asarray(stack.b[t])[:, : stack.ranks[t]] for t in tasks]
    as_ = [np.asarray(stack.a[t])[: stack.ranks[t]] for t in tasks]
    return LowRank(
        b=np.concatenate(bs, 1).astype(np.float32),
        a=np.concatenate(as_).astype(np.float32),
    )


def summed(adapters) -> dict[str, LowRank]:
    """The sum of the tasks, module by module."""
    return {m: concatenated(stack) for m, stack in adapters.stacks.items()}


def load_one(folder, **options):
    return io.load_peft([folder], **options)


def close(found, expected, tol=2e-6):
    np.testing.assert_allclose(
        found, expected, rtol=tol, atol=tol * np.abs(expected).max()
    )


def with_head(shape=(3, 6), seed=0, name="classifier"):
    return linear() | {
        f"base_model.model.{name}.weight": random(*shape, seed=seed),
        f"base_model.model.{name}.bias": random(shape[0], seed=seed),
    }


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / "adapter_model.safetensors")


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def record_of(folder):
    return json.loads((folder / "jaxmerge.json").read_text())


def read_back(folder, module="h.0.fc"):
    return update(io.load_peft([folder]).stacks[module])


def exact(update):
    return product(update.b, update.a)


def best(matrix, rank):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def load_or_refuse(folder, **options):
    """Loads finite values or raises AdapterError; anything else is a failure."""
    before = sorted(folder.parent.rglob("*"))
    try:
        adapters = io.load_peft([folder], heads="keep", **options)
    except io.AdapterError as error:
        adapters, message = None, str(error)
    assert sorted(folder.parent.rglob("*")) == before
    if adapters is None:
        assert 10 < len(message) < 3000
        return None
    for stack in adapters.stacks.values():
        assert np.isfinite(stack.b).all()
        assert np.isfinite(stack.a).all()
    return adapters


def refuse(folder, match, **options):
    with pytest.raises(io.AdapterError, match=match):
        io.load_peft([folder], heads="keep", **options)


def refuse_in_time(folder, match):
    """Like `refuse`, in a process of its own, which is ended if it hangs."""
    program = (
        "import sys; from jaxmerge import io\n"
        "try: io.load_peft([sys.argv[1]])\n"
        "except io.AdapterError as error: print(error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, folder],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert re.search(match, ran.stdout)
    assert 10 < len(ran.stdout) < 1000


@contextmanager
def within(*, seconds, mebibytes):
    """Fails if what happens inside takes more processor time, or Python more memory."""
    tracemalloc.start()
    before = time.process_time()
    try:
        yield
        assert time.process_time() - before < 10 * seconds  # tracing takes its time
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()


def archive(folder, pickled, *, entries=(), compression=zipfile.ZIP_STORED):
    (folder / SAFE).unlink(missing_ok=True)
    with zipfile.ZipFile(folder / BIN, "w", compression) as file:
        file.writestr("a/data.pkl", pickled)
        for name, data in entries:
            file.writestr(name, data)


def rebuild(storage_size, offset, shape, stride, key="0"):
    """A pickle of one tensor with any numbers in it."""

    def number(n):
        return b"I%d\n" % n

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    pieces = [
        b"(dS'base_model.model.fc.lora_A.weight'\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        b"(S'storage'\nctorch\nFloatStorage\nS'" + key.encode() + b"'\nS'cpu'\n",
        number(storage_size) + b"tQ" + number(offset),
        numbers(shape) + numbers(stride),
        b"I00\nccollections\nOrderedDict\n(tRtRs.",
    ]
    return b"".join(pieces)
