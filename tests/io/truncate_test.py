"""Ranks of what is written: truncation by rank and by energy, dense updates."""

import io_samples as samples
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io
from jaxmerge.io.compress import Compressed, compress
from jaxmerge.types import LowRank
from jaxmerge.updates import dense

pytest_plugins = ["io_fixtures"]


@pytest.mark.parametrize("rank", [1, 3, 5, 6, 9, 40])
def test_rank_is_exact_and_truncation_optimal(tmp_path, adapters, updates, rank):
    report = io.save_peft(tmp_path / "out", updates, like=adapters, rank=rank)
    assert set(report.ranks.values()) == {rank}
    for module, update in updates.items():
        whole = samples.exact(update)
        np.testing.assert_allclose(
            samples.read_back(tmp_path / "out", module),
            samples.best(whole, rank),
            atol=1e-4,
        )
        lost = (
            np.linalg.norm(whole - samples.best(whole, rank)) ** 2
            / np.linalg.norm(whole) ** 2
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
        squares = np.linalg.svd(samples.exact(update), compute_uv=False) ** 2
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
        samples.read_back(tmp_path / "out", "h.1.fc"),
        samples.best(samples.exact(updates["h.1.fc"]), 2),
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
            found[f"{module}.weight"], samples.exact(update), rtol=1e-5, atol=1e-5
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
    assert samples.config_of(tmp_path / "out")["fan_in_fan_out"] is True


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_updates_are_truncated_in_float32(tmp_path, adapters, updates, dtype):
    narrow = {
        m: LowRank(b=jnp.asarray(u.b, dtype), a=jnp.asarray(u.a, dtype))
        for m, u in updates.items()
    }
    io.save_peft(tmp_path / "out", narrow, like=adapters, rank=2)
    for module, update in narrow.items():
        np.testing.assert_allclose(
            samples.read_back(tmp_path / "out", module),
            samples.best(samples.exact(update), 2),
            atol=1e-4,
        )


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
