"""Orbax checkpoints give back exactly what was saved, or a clear error."""

import dataclasses
import json
import os
import shutil

import io_samples as samples
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxmerge import io
from jaxmerge.io.stored import load_stored
from jaxmerge.types import AdapterStack, LowRank

HOSTILE_NAMES = ["h.0.fc", "../../etc/passwd", "/absolute", "a/b", ".", "snow ☃\n", "0"]


def same(x, y):
    assert type(x) is type(y)
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def same_modules(found, expected):
    assert list(found) == list(expected)
    for module, value in expected.items():
        other = found[module]
        if isinstance(value, AdapterStack):
            assert other.ranks == value.ranks
            same(other.a, value.a)
            same(other.b, value.b)
        elif isinstance(value, LowRank):
            assert isinstance(other, LowRank)
            same(other.a, value.a)
            same(other.b, value.b)
        else:
            same(other, value)


def padded_stack(ranks, seed=0):
    """Factors whose directions end at the rank of their task."""
    kept = np.arange(4) < np.array(ranks)[:, None]
    a, b = samples.random(3, 4, 5, seed=seed), samples.random(3, 6, 4, seed=seed)
    return AdapterStack(
        a=jnp.asarray(np.where(kept[..., None], a, 0)),
        b=jnp.asarray(np.where(kept[:, None], b, 0)),
        ranks=ranks,
    )


@pytest.fixture
def adapters(tmp_path):
    one = samples.linear(bias=True) | samples.conv() | samples.embedding()
    one["base_model.model.score.weight"] = samples.random(
        3, 6, dtype=ml_dtypes.bfloat16
    )
    one["base_model.model.score.bias"] = np.arange(3)
    two = samples.linear(r=2, seed=7) | samples.linear("h.1.fc", r=2, seed=8)
    two["base_model.model.h.1.fc.lora_B.weight"][:] = 0
    folders = [
        samples.write(tmp_path / "one", one, revision="main"),
        samples.write(tmp_path / "two", two, r=2, use_rslora=True),
    ]
    return io.load_peft(folders, heads="keep", ignore_config_keys=["x"])


def test_adapters_survive(tmp_path, adapters):
    io.save_orbax(tmp_path / "ckpt", adapters)
    found = io.load_orbax(tmp_path / "ckpt")
    assert isinstance(found, io.Adapters)
    same_modules(found.stacks, adapters.stacks)
    same_modules(found.biases, adapters.biases)
    for field in ("names", "layouts", "sources", "options"):
        assert getattr(found, field) == getattr(adapters, field)
    for mine, theirs in zip(found.heads, adapters.heads, strict=True):
        assert list(mine) == list(theirs)
        for name, value in theirs.items():
            same(mine[name], value)


def test_what_comes_back_can_be_saved_as_peft(tmp_path, adapters):
    io.save_orbax(tmp_path / "ckpt", adapters)
    found = io.load_orbax(tmp_path / "ckpt")
    updates = {m: samples.concatenated(s) for m, s in found.stacks.items()}
    reports = [
        io.save_peft(tmp_path / name, updates, like=like, biases={})
        for name, like in (("a", adapters), ("b", found))
    ]
    names = (
        "adapter_model.safetensors",
        "adapter_config.json",
        "heads/one.safetensors",
    )
    for name in names:
        assert reports[0].files[name] == reports[1].files[name]


def test_a_checkpoint_beside_adapters_is_refused_by_what_it_is(tmp_path, adapters):
    io.save_orbax(tmp_path / "ckpt", adapters)
    peft = samples.write(tmp_path / "peft")
    with pytest.raises(io.AdapterError, match=r"is an orbax checkpoint.*task=<name>"):
        io.load_peft([peft, tmp_path / "ckpt"])
    with pytest.raises(io.AdapterError, match="lora_alpha is for checkpoints of JAX"):
        load_stored(tmp_path / "ckpt", lora_alpha=4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64])
def test_updates_survive_with_their_kind(tmp_path, dtype):
    low = LowRank(
        b=jnp.asarray(samples.random(6, 2), dtype),
        a=jnp.asarray(samples.random(2, 5), dtype),
    )
    empty = LowRank(b=jnp.zeros((6, 0), dtype), a=jnp.zeros((0, 5), dtype))
    updates = {
        "low": low,
        "dense": jnp.asarray(samples.random(6, 5), dtype),
        "empty": empty,
    }
    io.save_orbax(tmp_path / "ckpt", updates)
    same_modules(io.load_orbax(tmp_path / "ckpt"), updates)


def test_stacks_survive_and_names_never_become_paths(tmp_path):
    stacks = {
        name: padded_stack(ranks=(4, 0, i % 4), seed=i)
        for i, name in enumerate(HOSTILE_NAMES)
    }
    (tmp_path / "place").mkdir()
    io.save_orbax(tmp_path / "place" / "ckpt", stacks)
    same_modules(io.load_orbax(tmp_path / "place" / "ckpt"), stacks)
    assert os.listdir(tmp_path) == ["place"]
    assert os.listdir(tmp_path / "place") == ["ckpt"]
    io.save_orbax(tmp_path / "none", {})
    assert io.load_orbax(tmp_path / "none") == {}


def test_force_and_foreign_values(tmp_path, adapters):
    io.save_orbax(tmp_path / "ckpt", adapters)
    with pytest.raises(io.AdapterError, match="exists already"):
        io.save_orbax(tmp_path / "ckpt", adapters)
    updates = {"m": jnp.ones((2, 3))}
    io.save_orbax(tmp_path / "ckpt", updates, force=True)
    same_modules(io.load_orbax(tmp_path / "ckpt"), updates)
    for value in ({"m": "text"}, {"m": [1.0]}):
        with pytest.raises(io.AdapterError, match="neither"):
            io.save_orbax(tmp_path / "other", value)
    with pytest.raises(io.AdapterError, match="holds the input"):
        io.save_orbax(
            tmp_path / "one",
            dataclasses.replace(adapters),
            force=True,
        )
    assert sorted(os.listdir(tmp_path)) == ["ckpt", "one", "two"]


def put(record, field, value):
    """Changes a field, which is given by its names and numbers."""
    *above, last = field
    for name in above:
        record = record[name]
    record[last] = value


WITHOUT_DIGEST = [  # what the arrays and the configs contradict
    (("modules", "h.0.fc", "ranks"), [2, 2]),
    (("modules", "h.0.fc", "ranks"), [3]),
    (("modules", "h.0.fc", "ranks"), [3, True]),
    (("modules", "h.0.fc", "ranks"), [4, 3]),  # of zeros, but not the r of its config
    (("modules", "h.0.fc", "b"), 1),
    (("modules", "h.0.fc", "kind"), "low_rank"),
    (("leaves", 0, "dtype"), "float16"),
    (("leaves", 0, "shape", 0), -1),
    (("leaves", 0, "shape"), [2**40, 2**40]),
    (("names",), ["one"]),
    (("names",), ["one", "one"]),
    (("names",), "ab"),
    (("sources", 0, "scales", "h.0.fc"), 3.5),
    (("sources", 0, "scales"), {}),
    (("sources", 1, "scales"), {"h.0.fc": "2"}),
    (("sources", 0, "dtype"), "bfloat16"),
    (("sources", 0, "dtype"), "int8"),
    (("sources", 0, "base_model"), "org/other"),
    (("sources", 0, "config", "r"), 7),
    (("sources", 0, "sha256"), {"../x": "0" * 64}),
    (("layouts", "h.0.fc", "kind"), "conv2d"),
    (("layouts", "h.0.fc", "fan_in_fan_out"), True),
    (("layouts", "h.0.fc", "kind"), ["linear"]),
    (("biases", "h.0.fc", "value"), 0),
    (("options", "strip_prefix"), 3),
    (("options", "zzz"), 3),
    (("heads",), []),
]


@pytest.mark.parametrize(("field", "value"), WITHOUT_DIGEST)
def test_metadata_that_do_not_fit_the_leaves_are_refused(
    tmp_path, adapters, field, value
):
    """Also where no digest tells, as in checkpoints of version 0.1.0."""
    folder = tmp_path / "ckpt"
    io.save_orbax(folder, adapters)
    record = json.loads((folder / "jaxmerge.json").read_text())
    record["format"] = "jaxmerge-orbax-1"
    del record["sha256"]
    for leaf in record["leaves"]:
        del leaf["sha256"]
    (folder / "jaxmerge.json").write_text(json.dumps(record))
    io.load_orbax(folder)
    put(record, field, value)
    (folder / "jaxmerge.json").write_text(json.dumps(record))
    with pytest.raises(io.AdapterError, match=r"ckpt.*field ") as caught:
        io.load_orbax(folder)
    said = str(caught.value)
    assert any(str(name) in said for name in (*field, "leaves", "config"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("names", 0), "eleven"),
        (("modules", "h.0.fc", "ranks", 1), 3),  # a direction of zeros more
        (("sources", 0, "weight_file"), "other.safetensors"),
        (("sources", 0, "path"), "elsewhere"),
        (("leaves", 0, "sha256"), "0" * 64),
        (("sha256",), "0" * 64),
        (("sha256",), None),
    ],
)
def test_a_changed_record_does_not_have_its_digest(tmp_path, adapters, field, value):
    folder = tmp_path / "ckpt"
    io.save_orbax(folder, adapters)
    record = json.loads((folder / "jaxmerge.json").read_text())
    put(record, field, value)
    (folder / "jaxmerge.json").write_text(json.dumps(record))
    with pytest.raises(io.AdapterError, match="sha256"):
        io.load_orbax(folder)


def test_other_leaves_do_not_have_their_digests(tmp_path):
    for name, factor in (("good", 1.0), ("other", 2.0)):
        io.save_orbax(tmp_path / name, {"m": factor * jnp.ones((2, 3))})
    shutil.rmtree(tmp_path / "good" / "leaves")
    shutil.copytree(tmp_path / "other" / "leaves", tmp_path / "good" / "leaves")
    with pytest.raises(io.AdapterError, match=r"field leaves\[0\]\.sha256"):
        io.load_orbax(tmp_path / "good")


def test_what_contradicts_itself_is_not_saved(tmp_path):
    stack = padded_stack((4, 0, 2)).replace(ranks=(4, 0, 1))
    with pytest.raises(io.AdapterError, match="directions beyond 1"):
        io.save_orbax(tmp_path / "ckpt", {"m": stack})
    assert not (tmp_path / "ckpt").exists()


def test_damaged_checkpoints_are_clear_errors(tmp_path, adapters):
    io.save_orbax(tmp_path / "good", adapters)
    record = json.loads((tmp_path / "good" / "jaxmerge.json").read_text())

    def damaged(name, **changes):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "good", folder)
        (folder / "jaxmerge.json").write_text(json.dumps({**record, **changes}))
        return folder

    wrong_shape = json.loads(json.dumps(record["leaves"]))
    wrong_shape[0]["shape"][0] += 1
    cases = [
        damaged("format", format="jaxmerge-orbax-99"),
        damaged("leaves", leaves=record["leaves"][:-3]),
        damaged("shape", leaves=wrong_shape),
        damaged("modules", modules={"m": {"kind": "stack"}}),
        damaged("types", modules=7),
        damaged("sources", sources=[{"path": 1}]),
        damaged("options", options={"unknown": 1}),
        tmp_path / "one",
        tmp_path / "nowhere",
    ]
    shutil.rmtree(damaged("gone") / "leaves")
    for file in (damaged("cut") / "leaves").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for folder in [*cases, tmp_path / "gone", tmp_path / "cut"]:
        with pytest.raises(io.AdapterError, match=str(folder)):
            io.load_orbax(folder)
