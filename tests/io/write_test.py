"""Writing merged updates: padding, patterns, layouts, dtypes, biases."""

import json

import io_samples as samples
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxmerge import io
from jaxmerge.types import LowRank

pytest_plugins = ["io_fixtures"]


def test_default_is_one_rank_padded_and_alpha_equal_to_it(tmp_path, adapters, updates):
    updates["h.1.fc"] = LowRank(b=updates["h.1.fc"].b[:, :3], a=updates["h.1.fc"].a[:3])
    report = io.save_peft(tmp_path / "out", updates, like=adapters)
    assert report.rank == 6
    assert report.ranks == {"h.0.fc": 6, "h.1.fc": 6}
    assert report.max_lora_rank == 8
    assert report.energy == {"h.0.fc": 1.0, "h.1.fc": 1.0}
    assert report.cast_error == {"h.0.fc": 0.0, "h.1.fc": 0.0}
    assert samples.config_of(tmp_path / "out") == {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": "org/base",
        "revision": None,
        "r": 6,
        "lora_alpha": 6,
        "target_modules": ["h.0.fc", "h.1.fc"],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
    }
    found = samples.tensors_of(tmp_path / "out")
    start = "base_model.model.h.1.fc."
    np.testing.assert_array_equal(found[f"{start}lora_B.weight"][:, 3:], 0)
    np.testing.assert_array_equal(found[f"{start}lora_A.weight"][3:], 0)
    for module, update in updates.items():
        np.testing.assert_array_equal(
            found[f"base_model.model.{module}.lora_A.weight"][: update.a.shape[0]],
            update.a,
        )
        np.testing.assert_allclose(
            samples.read_back(tmp_path / "out", module), samples.exact(update)
        )


def test_ragged_writes_patterns_for_every_module(tmp_path, adapters, updates):
    updates["h.1.fc"] = LowRank(b=updates["h.1.fc"].b[:, :3], a=updates["h.1.fc"].a[:3])
    report = io.save_peft(tmp_path / "out", updates, like=adapters, ragged=True)
    assert report.ranks == {"h.0.fc": 6, "h.1.fc": 3}
    config = samples.config_of(tmp_path / "out")
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == [3, 6]
    assert config["r"] == config["lora_alpha"]
    adapters = io.load_peft([tmp_path / "out"])
    assert set(adapters.sources[0].scales.values()) == {1.0}
    for module, update in updates.items():
        assert adapters.stacks[module].ranks == (update.a.shape[0],)
        np.testing.assert_allclose(
            samples.update(adapters.stacks[module]), samples.exact(update)
        )


def test_ragged_patterns_do_not_catch_names_that_end_alike(tmp_path):
    """Names that end like others, and names with characters of regular expressions."""
    names = ["fc", "a.fc", "b.a.fc", "x+y.fc", "(fc", "a(fc", "q[0].fc"]
    tensors = {}
    for seed, name in enumerate(names):
        tensors |= samples.linear(name, m=20, n=15, seed=seed)
    adapters = io.load_peft([samples.write(tmp_path / "in", tensors)])
    updates = {
        name: LowRank(
            b=adapters.stacks[name].b[0, :, :k], a=adapters.stacks[name].a[0, :k]
        )
        for name, k in zip(names, (1, 2, 3, 4, 1, 2, 3), strict=True)
    }
    io.save_peft(tmp_path / "out", updates, like=adapters, ragged=True)
    again = io.load_peft([tmp_path / "out"])
    assert {m: s.ranks[0] for m, s in again.stacks.items()} == {
        m: u.a.shape[0] for m, u in updates.items()
    }


def test_zero_and_empty_updates_are_written(tmp_path, adapters, updates):
    updates["h.0.fc"] = LowRank(
        b=jnp.zeros((20, 0), jnp.float32), a=jnp.zeros((0, 15), jnp.float32)
    )
    for ragged in (False, True):
        out = tmp_path / f"out{ragged}"
        io.save_peft(out, updates, like=adapters, ragged=ragged)
        again = io.load_peft([out])
        assert list(again.stacks) == ["h.1.fc"]
        assert again.sources[0].zero_modules == ("h.0.fc",)


@pytest.mark.parametrize(
    ("dtype", "error"),
    [("float16", 2**-10), ("bfloat16", 2**-7), (jnp.bfloat16, 2**-7)],
)
def test_cast_error_is_measured(tmp_path, adapters, updates, dtype, error):
    report = io.save_peft(tmp_path / "out", updates, like=adapters, dtype=dtype)
    for module, update in updates.items():
        whole = samples.exact(update)
        found = np.linalg.norm(samples.read_back(tmp_path / "out", module) - whole)
        found /= np.linalg.norm(whole)
        assert 0 < found < error
        assert report.cast_error[module] == pytest.approx(found, rel=1e-3)
    assert report.dtype == np.dtype(dtype).name
    assert {t.dtype.name for t in samples.tensors_of(tmp_path / "out").values()} == {
        report.dtype
    }


def test_default_dtype_is_that_of_the_inputs(tmp_path):
    folders = [
        samples.write(
            tmp_path / f"in{i}", samples.linear(dtype=ml_dtypes.bfloat16, seed=i)
        )
        for i in range(2)
    ]
    adapters = io.load_peft(folders)
    updates = samples.summed(adapters)
    assert io.save_peft(tmp_path / "out", updates, like=adapters).dtype == "bfloat16"


def test_overflow_and_unknown_dtypes_are_refused(tmp_path, adapters, updates):
    big = LowRank(b=updates["h.0.fc"].b * jnp.float32(1e6), a=updates["h.0.fc"].a)
    with pytest.raises(io.AdapterError, match=r"float16.*dtype='float32'"):
        io.save_peft(tmp_path / "out", {"h.0.fc": big}, like=adapters, dtype="float16")
    for dtype in ("int8", "float64", "nonsense", 7):
        with pytest.raises(io.AdapterError, match="expected float32"):
            io.save_peft(tmp_path / "out", updates, like=adapters, dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_one_task_alone_can_be_saved_again(tmp_path, adapters):
    alone = adapters.task("in1")
    assert alone.names == ("in1",)
    assert alone.stacks["h.0.fc"].ranks == (2,)
    own = {m: LowRank(b=s.b[0], a=s.a[0]) for m, s in alone.stacks.items()}
    report = io.save_peft(tmp_path / "out", own, like=alone)
    assert report.rank == 2
    np.testing.assert_array_equal(
        samples.read_back(tmp_path / "out"),
        samples.update(adapters.stacks["h.0.fc"], 1),
    )
    with pytest.raises(KeyError, match="in0, in1"):
        adapters.task("in7")


def test_float64_updates_are_saved_as_the_inputs(tmp_path, adapters, updates):
    wide = {
        m: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), u)
        for m, u in updates.items()
    }
    report = io.save_peft(tmp_path / "out", wide, like=adapters, rank=3)
    assert report.dtype == "float32"


BAD_UPDATES = {
    "unknown module": {"h.9.fc": LowRank(b=np.ones((20, 1)), a=np.ones((1, 15)))},
    "shape": {"h.0.fc": LowRank(b=np.ones((19, 1)), a=np.ones((1, 15)))},
    "factors": {"h.0.fc": LowRank(b=np.ones((20, 2)), a=np.ones((1, 15)))},
    "vector": {"h.0.fc": np.ones(15)},
    "nan": {"h.0.fc": LowRank(b=np.full((20, 1), np.nan), a=np.ones((1, 15)))},
    "nothing": {},
}


@pytest.mark.parametrize("name", BAD_UPDATES)
def test_updates_that_do_not_fit_are_refused(tmp_path, adapters, name):
    with pytest.raises(io.AdapterError):
        io.save_peft(tmp_path / "out", BAD_UPDATES[name], like=adapters)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0}, {"rank": 2.0}, {"rank": "many"}, {"rank": True}, {"energy": 0.0},
        {"energy": 1.5}, {"rank": 2, "energy": 0.5}, {"heads": "some"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(tmp_path, adapters, updates, options):
    with pytest.raises(io.AdapterError):
        io.save_peft(tmp_path / "out", updates, like=adapters, **options)
    assert not (tmp_path / "out").exists()


def test_a_subset_of_the_modules_is_reported(tmp_path, adapters, updates):
    del updates["h.0.fc"]
    report = io.save_peft(tmp_path / "out", updates, like=adapters)
    assert report.omitted == ("h.0.fc",)
    assert samples.config_of(tmp_path / "out")["target_modules"] == ["h.1.fc"]


@pytest.mark.parametrize(
    ("tensors", "leaf"),
    [(samples.conv(), "lora_A.weight"), (samples.embedding(), "lora_embedding_A")],
)
def test_other_layouts_go_back_into_their_shape(tmp_path, tensors, leaf):
    adapters = io.load_peft([samples.write(tmp_path / "in", tensors, lora_alpha=4)])
    updates = samples.summed(adapters)
    io.save_peft(tmp_path / "out", updates, like=adapters)
    found = samples.tensors_of(tmp_path / "out")
    assert any(key.endswith(leaf) for key in found)
    for key, value in tensors.items():
        np.testing.assert_array_equal(found[key], value)


def test_biases_of_unknown_modules_and_embeddings_are_refused(tmp_path):
    tensors = samples.linear(bias=True) | samples.embedding()
    adapters = io.load_peft([samples.write(tmp_path / "in", tensors)])
    updates = samples.summed(adapters)
    biases = {"h.0.fc": adapters.biases["h.0.fc"][0]}
    with pytest.raises(io.AdapterError, match="embeddings"):
        io.save_peft(tmp_path / "out", updates, like=adapters, biases=biases)
    fc = {"h.0.fc": updates["h.0.fc"]}
    with pytest.raises(io.AdapterError, match="without an update"):
        io.save_peft(tmp_path / "out", fc, like=adapters, biases={"h.9": np.ones(6)})
    with pytest.raises(io.AdapterError, match="not 6 finite numbers"):
        io.save_peft(tmp_path / "out", fc, like=adapters, biases={"h.0.fc": np.ones(5)})
    io.save_peft(tmp_path / "out", updates, like=adapters, biases={})
    assert "lora_bias" not in samples.config_of(tmp_path / "out")
    io.save_peft(tmp_path / "biased", fc, like=adapters, biases=biases)
    assert samples.config_of(tmp_path / "biased")["lora_bias"] is True
    again = io.load_peft([tmp_path / "biased"])
    np.testing.assert_array_equal(again.biases["h.0.fc"][0], biases["h.0.fc"])


def test_report_is_json(tmp_path, adapters, updates):
    report = io.save_peft(tmp_path / "out", updates, like=adapters)
    assert json.loads(json.dumps(report.to_json()))["rank"] == 6
