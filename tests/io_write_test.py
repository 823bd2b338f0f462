"""Writing: ranks, padding, truncation, dtypes, heads, the card, and safe folders."""

import dataclasses
import json
import os
import re
import stat

import io_samples as samples
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io
from jaxmerge.io import write as write_module
from jaxmerge.io.compress import Compressed, compress
from jaxmerge.io.staging import staged_folder
from jaxmerge.types import LowRank
from jaxmerge.updates import dense

MODULES = ("h.0.fc", "h.1.fc")


@pytest.fixture
def adapters(tmp_path):
    """Two adapters of ranks 4 and 2 on two linear modules, [20, 15] and [12, 15]."""
    folders = []
    for seed, rank in enumerate((4, 2)):
        tensors = samples.linear("h.0.fc", m=20, n=15, r=rank, seed=10 * seed)
        tensors |= samples.linear("h.1.fc", m=12, n=15, r=rank, seed=10 * seed + 5)
        folders.append(samples.write(tmp_path / f"in{seed}", tensors, r=rank))
    return io.load_peft(folders)


@pytest.fixture
def updates(adapters):
    return {m: samples.concatenated(stack) for m, stack in adapters.stacks.items()}


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / "adapter_model.safetensors")


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def read_back(folder, module="h.0.fc"):
    return samples.update(io.load_peft([folder]).stacks[module])


def exact(update):
    return np.asarray(update.b, np.float64) @ np.asarray(update.a, np.float64)


def best(matrix, rank):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def test_default_is_one_rank_padded_and_alpha_equal_to_it(tmp_path, adapters, updates):
    updates["h.1.fc"] = LowRank(b=updates["h.1.fc"].b[:, :3], a=updates["h.1.fc"].a[:3])
    report = io.save_peft(tmp_path / "out", updates, like=adapters)
    assert report.rank == 6
    assert report.ranks == {"h.0.fc": 6, "h.1.fc": 6}
    assert report.max_lora_rank == 8
    assert report.energy == {"h.0.fc": 1.0, "h.1.fc": 1.0}
    assert report.cast_error == {"h.0.fc": 0.0, "h.1.fc": 0.0}
    assert config_of(tmp_path / "out") == {
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
    found = tensors_of(tmp_path / "out")
    start = "base_model.model.h.1.fc."
    np.testing.assert_array_equal(found[f"{start}lora_B.weight"][:, 3:], 0)
    np.testing.assert_array_equal(found[f"{start}lora_A.weight"][3:], 0)
    for module, update in updates.items():
        np.testing.assert_array_equal(
            found[f"base_model.model.{module}.lora_A.weight"][: update.a.shape[0]],
            update.a,
        )
        np.testing.assert_allclose(read_back(tmp_path / "out", module), exact(update))


def test_ragged_writes_patterns_for_every_module(tmp_path, adapters, updates):
    updates["h.1.fc"] = LowRank(b=updates["h.1.fc"].b[:, :3], a=updates["h.1.fc"].a[:3])
    report = io.save_peft(tmp_path / "out", updates, like=adapters, ragged=True)
    assert report.ranks == {"h.0.fc": 6, "h.1.fc": 3}
    config = config_of(tmp_path / "out")
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == [3, 6]
    assert config["r"] == config["lora_alpha"]
    adapters = io.load_peft([tmp_path / "out"])
    assert set(adapters.sources[0].scales.values()) == {1.0}
    for module, update in updates.items():
        assert adapters.stacks[module].ranks == (update.a.shape[0],)
        np.testing.assert_allclose(
            samples.update(adapters.stacks[module]), exact(update)
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


@pytest.mark.parametrize("rank", [1, 3, 5, 6, 9, 40])
def test_rank_is_exact_and_truncation_optimal(tmp_path, adapters, updates, rank):
    report = io.save_peft(tmp_path / "out", updates, like=adapters, rank=rank)
    assert set(report.ranks.values()) == {rank}
    for module, update in updates.items():
        whole = exact(update)
        np.testing.assert_allclose(
            read_back(tmp_path / "out", module), best(whole, rank), atol=1e-4
        )
        lost = (
            np.linalg.norm(whole - best(whole, rank)) ** 2 / np.linalg.norm(whole) ** 2
        )
        assert report.energy[module] == pytest.approx(1 - lost, abs=1e-6)


def test_rank_auto_is_the_largest_input_rank(tmp_path, adapters, updates):
    report = io.save_peft(tmp_path / "out", updates, like=adapters, rank="auto")
    assert report.rank == 4


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999, 1.0])
def test_energy_keeps_its_share_with_the_fewest_directions(
    tmp_path, adapters, updates, energy, ragged
):
    report = io.save_peft(
        tmp_path / "out", updates, like=adapters, energy=energy, ragged=ragged
    )
    needed = {}
    for module, update in updates.items():
        squares = np.linalg.svd(exact(update), compute_uv=False) ** 2
        shares = np.cumsum(squares) / squares.sum()
        needed[module] = min(int(np.argmax(shares >= energy - 1e-6)) + 1, 6)
        assert report.energy[module] >= energy - 1e-6
    wanted = needed if ragged else dict.fromkeys(needed, max(needed.values()))
    assert report.ranks == wanted


def test_compression_of_a_zero_update():
    zero = {
        "m": LowRank(b=jnp.zeros((5, 3), jnp.float32), a=jnp.ones((3, 4), jnp.float32))
    }
    found = compress(zero, energy=0.9)["m"]
    assert found.rank == 1
    assert not (found.b @ found.a).any()
    assert found.energy == 1.0


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


def test_dense_updates_need_a_choice(tmp_path, adapters, updates):
    full = updates | {"h.1.fc": dense(updates["h.1.fc"])}
    with pytest.raises(io.AdapterError, match=r"dense.*'h\.1\.fc'.*truncate.*full"):
        io.save_peft(tmp_path / "out", full, like=adapters)
    with pytest.raises(io.AdapterError, match="rank=<number> or energy"):
        io.save_peft(tmp_path / "out", full, like=adapters, dense="truncate")
    with pytest.raises(io.AdapterError, match="expected error, truncate or full"):
        io.save_peft(tmp_path / "out", full, like=adapters, dense="keep")
    assert not (tmp_path / "out").exists()
    io.save_peft(tmp_path / "out", full, like=adapters, dense="truncate", rank=2)
    np.testing.assert_allclose(
        read_back(tmp_path / "out", "h.1.fc"),
        best(exact(updates["h.1.fc"]), 2),
        atol=1e-4,
    )


def test_full_weight_deltas(tmp_path, adapters, updates):
    full = updates | {"h.1.fc": dense(updates["h.1.fc"])}
    report = io.save_peft(tmp_path / "out", full, like=adapters, dense="full")
    assert sorted(report.files) == ["README.md", "delta.safetensors", "jaxmerge.json"]
    assert (report.rank, report.max_lora_rank) == (0, None)
    found = safetensors.numpy.load_file(tmp_path / "out" / "delta.safetensors")
    assert sorted(found) == ["h.0.fc.weight", "h.1.fc.weight"]
    for module, update in updates.items():
        np.testing.assert_allclose(
            found[f"{module}.weight"], exact(update), rtol=1e-5, atol=1e-5
        )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name" not in card
    with pytest.raises(io.AdapterError, match="weight deltas"):
        io.save_peft(tmp_path / "x", full, like=adapters, dense="full", rank=3)
    low = io.save_peft(tmp_path / "low", updates, like=adapters, dense="full")
    assert "adapter_model.safetensors" in low.files


def test_deltas_of_disagreeing_configs_are_refused(tmp_path):
    folders = [
        samples.write(tmp_path / str(flag), fan_in_fan_out=flag)
        for flag in (True, False)
    ]
    adapters = io.load_peft(folders)
    full = {"h.0.fc": dense(samples.concatenated(adapters.stacks["h.0.fc"]))}
    with pytest.raises(io.AdapterError, match="disagree on fan_in_fan_out"):
        io.save_peft(tmp_path / "out", full, like=adapters, dense="full")
    io.save_peft(tmp_path / "out", full, like=adapters, dense="truncate", rank=5)
    assert config_of(tmp_path / "out")["fan_in_fan_out"] is True


@pytest.mark.parametrize(
    ("dtype", "error"),
    [("float16", 2**-10), ("bfloat16", 2**-7), (jnp.bfloat16, 2**-7)],
)
def test_cast_error_is_measured(tmp_path, adapters, updates, dtype, error):
    report = io.save_peft(tmp_path / "out", updates, like=adapters, dtype=dtype)
    for module, update in updates.items():
        whole = exact(update)
        found = np.linalg.norm(read_back(tmp_path / "out", module) - whole)
        found /= np.linalg.norm(whole)
        assert 0 < found < error
        assert report.cast_error[module] == pytest.approx(found, rel=1e-3)
    assert report.dtype == np.dtype(dtype).name
    assert {t.dtype.name for t in tensors_of(tmp_path / "out").values()} == {
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
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    assert io.save_peft(tmp_path / "out", updates, like=adapters).dtype == "bfloat16"


def test_overflow_and_unknown_dtypes_are_refused(tmp_path, adapters, updates):
    big = LowRank(b=updates["h.0.fc"].b * jnp.float32(1e6), a=updates["h.0.fc"].a)
    with pytest.raises(io.AdapterError, match=r"float16.*dtype='float32'"):
        io.save_peft(tmp_path / "out", {"h.0.fc": big}, like=adapters, dtype="float16")
    for dtype in ("int8", "float64", "nonsense", 7):
        with pytest.raises(io.AdapterError, match="expected float32"):
            io.save_peft(tmp_path / "out", updates, like=adapters, dtype=dtype)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_updates_are_truncated_in_float32(tmp_path, adapters, updates, dtype):
    narrow = {
        m: LowRank(b=jnp.asarray(u.b, dtype), a=jnp.asarray(u.a, dtype))
        for m, u in updates.items()
    }
    io.save_peft(tmp_path / "out", narrow, like=adapters, rank=2)
    for module, update in narrow.items():
        np.testing.assert_allclose(
            read_back(tmp_path / "out", module), best(exact(update), 2), atol=1e-4
        )


def test_one_task_alone_can_be_saved_again(tmp_path, adapters):
    alone = adapters.task("in1")
    assert alone.names == ("in1",)
    assert alone.stacks["h.0.fc"].ranks == (2,)
    own = {m: LowRank(b=s.b[0], a=s.a[0]) for m, s in alone.stacks.items()}
    report = io.save_peft(tmp_path / "out", own, like=alone)
    assert report.rank == 2
    np.testing.assert_array_equal(
        read_back(tmp_path / "out"), samples.update(adapters.stacks["h.0.fc"], 1)
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
    assert config_of(tmp_path / "out")["target_modules"] == ["h.1.fc"]


@pytest.mark.parametrize(
    ("tensors", "leaf"),
    [(samples.conv(), "lora_A.weight"), (samples.embedding(), "lora_embedding_A")],
)
def test_other_layouts_go_back_into_their_shape(tmp_path, tensors, leaf):
    adapters = io.load_peft([samples.write(tmp_path / "in", tensors, lora_alpha=4)])
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    io.save_peft(tmp_path / "out", updates, like=adapters)
    found = tensors_of(tmp_path / "out")
    assert any(key.endswith(leaf) for key in found)
    for key, value in tensors.items():
        np.testing.assert_array_equal(found[key], value)


def heads_inputs(tmp_path):
    folders = []
    for seed, name in enumerate(("one", "two words", "..three")):
        tensors = samples.linear(seed=seed)
        if seed:
            tensors["base_model.model.score.weight"] = samples.random(3, 6, seed=seed)
            tensors["base_model.model.score.steps"] = np.array([7])
        folders.append(
            samples.write(tmp_path / name, tensors, modules_to_save=["score", "other"])
        )
    return io.load_peft(folders, heads="keep")


def test_heads_kept_apart_are_files_of_their_own(tmp_path):
    adapters = heads_inputs(tmp_path)
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    report = io.save_peft(tmp_path / "out", updates, like=adapters)
    kept = sorted(name for name in report.files if name.startswith("heads/"))
    assert kept == ["heads/task1.safetensors", "heads/task2.safetensors"]
    found = safetensors.numpy.load_file(tmp_path / "out" / kept[0])
    np.testing.assert_array_equal(found["score.weight"], samples.random(3, 6, seed=1))
    assert "modules_to_save" not in config_of(tmp_path / "out")


@pytest.mark.parametrize("policy", ["first", "mean"])
def test_heads_inside_the_adapter(tmp_path, policy):
    adapters = heads_inputs(tmp_path)
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    io.save_peft(tmp_path / "out", updates, like=adapters, heads=policy)
    assert config_of(tmp_path / "out")["modules_to_save"] == ["score"]
    found = tensors_of(tmp_path / "out")
    heads = [samples.random(3, 6, seed=seed) for seed in (1, 2)]
    expected = heads[0] if policy == "first" else np.mean(heads, 0)
    np.testing.assert_allclose(
        found["base_model.model.score.weight"], expected, rtol=1e-6
    )
    assert found["base_model.model.score.steps"] == 7


def test_heads_given_by_the_caller_or_refused(tmp_path):
    adapters = heads_inputs(tmp_path)
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    with pytest.raises(io.AdapterError, match=r"score.*heads='keep'"):
        io.save_peft(tmp_path / "out", updates, like=adapters, heads="error")
    own = {"lm.head.weight": np.ones((2, 6), np.float32)}
    io.save_peft(tmp_path / "out", updates, like=adapters, heads=own)
    assert config_of(tmp_path / "out")["modules_to_save"] == ["lm.head"]
    counts = dataclasses.replace(
        adapters,
        heads=tuple({"score.steps": np.array([i])} for i in range(3)),
    )
    with pytest.raises(io.AdapterError, match="integers that differ"):
        io.save_peft(tmp_path / "x", updates, like=counts, heads="mean")


def test_biases_of_unknown_modules_and_embeddings_are_refused(tmp_path):
    tensors = samples.linear(bias=True) | samples.embedding()
    adapters = io.load_peft([samples.write(tmp_path / "in", tensors)])
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    biases = {"h.0.fc": adapters.biases["h.0.fc"][0]}
    with pytest.raises(io.AdapterError, match="embeddings"):
        io.save_peft(tmp_path / "out", updates, like=adapters, biases=biases)
    fc = {"h.0.fc": updates["h.0.fc"]}
    with pytest.raises(io.AdapterError, match="without an update"):
        io.save_peft(tmp_path / "out", fc, like=adapters, biases={"h.9": np.ones(6)})
    with pytest.raises(io.AdapterError, match="not 6 finite numbers"):
        io.save_peft(tmp_path / "out", fc, like=adapters, biases={"h.0.fc": np.ones(5)})
    io.save_peft(tmp_path / "out", updates, like=adapters, biases={})
    assert "lora_bias" not in config_of(tmp_path / "out")
    io.save_peft(tmp_path / "biased", fc, like=adapters, biases=biases)
    assert config_of(tmp_path / "biased")["lora_bias"] is True
    again = io.load_peft([tmp_path / "biased"])
    np.testing.assert_array_equal(again.biases["h.0.fc"][0], biases["h.0.fc"])


def test_card_and_record(tmp_path, adapters, updates):
    recipe = {"pipeline": "elect|core", "weights": {"in0": 0.5}, "seed": 3}
    report = io.save_peft(tmp_path / "out", updates, like=adapters, card=recipe, rank=3)
    record = json.loads((tmp_path / "out" / "jaxmerge.json").read_text())
    assert record["recipe"] == recipe
    assert record["versions"].keys() == {"jaxmerge", "jax"}
    assert [entry["name"] for entry in record["inputs"]] == ["in0", "in1"]
    assert record["inputs"][0]["sha256"] == dict(adapters.sources[0].sha256)
    assert record["output"]["rank"] == 3
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert record["output"]["sha256"][name] == report.files[name]
    io.ReadOptions(**record["read_options"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(
        '---\nbase_model:\n- "org/base"\nlibrary_name: peft\ntags:\n'
    )
    assert "elect|core" in card
    assert "in0" in card
    assert adapters.sources[1].sha256["adapter_model.safetensors"] in card
    (shown,) = re.findall(r"```json\n(.*?)\n```", card, flags=re.S)
    assert json.loads(shown) == record
    text = io.save_peft(tmp_path / "text", updates, like=adapters, card="mean")
    assert text.path == str(tmp_path / "text")
    record = json.loads((tmp_path / "text" / "jaxmerge.json").read_text())
    assert record["recipe"] == {"pipeline": "mean"}


def test_card_survives_hostile_text(tmp_path):
    name = "a|b`c\n# heading ![x](http://y)"
    folder = samples.write(
        tmp_path / name, base_model_name_or_path="/secret/place\n- evil/model"
    )
    adapters = io.load_peft([folder])
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    io.save_peft(
        tmp_path / "out", updates, like=adapters, card="x\n````\n# y\n```\n---"
    )
    card = (tmp_path / "out" / "README.md").read_text()
    front = card.split("---")[1]
    assert "base_model" not in front
    assert "evil" not in front
    assert "\n# heading" not in card
    assert "`````text\nx\n````\n# y\n```\n---\n`````" in card


def test_nothing_is_overwritten_without_force(tmp_path, adapters, updates):
    io.save_peft(tmp_path / "out", updates, like=adapters, rank=2)
    before = config_of(tmp_path / "out")
    with pytest.raises(io.AdapterError, match="exists already"):
        io.save_peft(tmp_path / "out", updates, like=adapters)
    assert config_of(tmp_path / "out") == before
    (tmp_path / "out" / "stale.txt").write_text("old")
    io.save_peft(tmp_path / "out", updates, like=adapters, force=True)
    assert config_of(tmp_path / "out")["r"] == 6
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert sorted(os.listdir(tmp_path)) == ["in0", "in1", "out"]


def test_force_replaces_nothing_but_adapters(tmp_path, adapters, updates):
    def save(out):
        io.save_peft(out, updates, like=adapters, force=True)

    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("precious")
    file = tmp_path / "file"
    file.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(thesis)
    for place, reason in (
        (thesis, "not an adapter"),
        (file, "not a folder"),
        (link, "not a folder"),
        (tmp_path / "in0", "input"),
    ):
        with pytest.raises(io.AdapterError, match=reason):
            save(place)
    assert (thesis / "chapter1.tex").read_text() == "precious"
    assert file.read_text() == "precious"
    assert io.load_peft([tmp_path / "in0"]).stacks
    (thesis / "chapter1.tex").rename(tmp_path / "chapter1.tex")
    save(thesis)  # an empty folder may be filled


def test_force_spares_a_folder_that_holds_an_input(tmp_path, updates, adapters):
    whole = tmp_path / "runs"
    whole.mkdir()
    (tmp_path / "in0").rename(whole / "in0")
    (whole / "jaxmerge.json").write_text("{}")
    moved = io.load_peft([whole / "in0"])
    own = {m: samples.concatenated(s) for m, s in moved.stacks.items()}
    with pytest.raises(io.AdapterError, match="is or holds the input"):
        io.save_peft(whole, own, like=moved, force=True)
    assert io.load_peft([whole / "in0"]).stacks


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_no_trace(tmp_path, adapters, updates, monkeypatch, force):
    out = tmp_path / "deep" / "er" / "out"
    if force:
        io.save_peft(out, updates, like=adapters, rank=2)
    before = sorted(tmp_path.rglob("*"))

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(write_module, "build_card", fail)
    with pytest.raises(KeyboardInterrupt):
        io.save_peft(out, updates, like=adapters, force=force)
    assert sorted(tmp_path.rglob("*")) == before
    if force:
        assert config_of(out)["r"] == 2


def test_a_write_that_reads_back_differently_is_not_shown(
    tmp_path, adapters, updates, monkeypatch
):
    save = safetensors.numpy.save_file

    def corrupt(tensors, path, **kwargs):
        save({key: value + 1 for key, value in tensors.items()}, path, **kwargs)

    monkeypatch.setattr(safetensors.numpy, "save_file", corrupt)
    with pytest.raises(RuntimeError, match="does not read back"):
        io.save_peft(tmp_path / "out", updates, like=adapters)
    assert sorted(os.listdir(tmp_path)) == ["in0", "in1"]


def test_rename_failure_restores_the_old_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "jaxmerge.json").write_text("old")
    rename = type(out).rename

    def fail(self, target):
        if self.name.endswith(".new"):
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(type(out), "rename", fail)
    with (
        pytest.raises(io.AdapterError, match="no space left"),
        staged_folder(out, force=True) as folder,
    ):
        (folder / "jaxmerge.json").write_text("new")
    assert (out / "jaxmerge.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_clear_error(tmp_path, adapters, updates):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(io.AdapterError, match="cannot be written"):
        io.save_peft(closed / "out", updates, like=adapters)


def test_a_file_as_parent_is_a_clear_error(tmp_path, adapters, updates):
    (tmp_path / "file").write_text("x")
    with pytest.raises(io.AdapterError, match="cannot be written"):
        io.save_peft(tmp_path / "file" / "out", updates, like=adapters)


def test_files_have_ordinary_permissions(tmp_path, adapters, updates):
    io.save_peft(tmp_path / "out", updates, like=adapters)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_no_dense_array_on_the_low_rank_path(adapters):
    """Truncation of a large update finishes in the memory of its factors."""
    m, n, k = 200_000, 100_000, 3
    update = LowRank(
        b=samples.random(m, k, seed=1), a=samples.random(k, n, seed=2)
    )  # b @ a would take 80 GB
    (found,) = compress({"m": update}, rank=2).values()
    assert isinstance(found, Compressed)
    assert (found.b.shape, found.a.shape) == ((m, 2), (2, n))
    half = Compressed(found.b.astype(np.float16), found.a.astype(np.float16))
    assert 0 < found.error_of(half) < 1e-3


def test_report_is_json(tmp_path, adapters, updates):
    report = io.save_peft(tmp_path / "out", updates, like=adapters)
    assert json.loads(json.dumps(report.to_json()))["rank"] == 6
