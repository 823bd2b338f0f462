"""Statistics of given inputs: moments, sketches, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import distance

import jaxmerge as jm


@pytest.mark.parametrize(
    ("inputs", "kept"),
    [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32),
     (jnp.float64, jnp.float64)],
)  # fmt: skip
def test_sums_are_at_least_float32(inputs, kept):
    x = np.random.default_rng(0).normal(size=(500, 4))
    x = jnp.asarray(x, inputs)
    exact = np.asarray(x, np.float64)
    stats = jm.moments_of(x)
    assert {leaf.dtype for leaf in stats} == {np.dtype(kept)}
    assert distance(stats.gram, exact.T @ exact) < (
        1e-12 if kept == "float64" else 1e-6
    )


def decaying(rows=300, n=20, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(rows, n))
        @ np.diag(0.7 ** np.arange(n))
        @ np.linalg.qr(rng.normal(size=(n, n)))[0]
        + 0.1
    )


@pytest.mark.parametrize("size", [1, 4, 10])
def test_guarantee_of_the_sketch(size):
    """Below the Gram matrix, by `lost` at most, which is below the published bound."""
    x = decaying()
    parts = [jm.sketch_of(jnp.asarray(part), size=size) for part in np.split(x, 6)]
    sketch = parts[0]
    for part in parts[1:]:
        sketch = jm.merge_moments(sketch, part)
    assert sketch.rows.shape == (size, 20)
    assert distance(sketch.mean, x.mean(0)) < 1e-12
    error = np.linalg.eigvalsh(x.T @ x - np.asarray(sketch.rows.T @ sketch.rows))
    assert error.min() > -1e-9 * error.max()
    assert 0 < error.max() <= sketch.lost * (1 + 1e-9)
    tails = np.cumsum(np.linalg.svd(x, compute_uv=False)[::-1] ** 2)[::-1]
    bounds = [tails[k] / (size + 1 - k) for k in range(size + 1)]
    assert sketch.lost <= min(bounds) * (1 + 1e-9)


def test_sketch_of_inputs_of_low_rank_is_exact():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(50, 3)) @ rng.normal(size=(3, 12)))
    exact, sketch = jm.moments_of(x), jm.sketch_of(x, size=5)
    assert sketch.lost < 1e-12 * sketch.count
    probe = jnp.asarray(rng.normal(size=(4, 12)))
    products = [jm.times_gram(probe, stats) for stats in (sketch, exact)]
    assert distance(*products) < 1e-12
    assert distance(jm.mean_square(sketch), jm.mean_square(exact)) < 1e-12
    rebuilt = []
    for stats in (sketch, exact):
        values, vectors = jm.spectrum(stats)
        assert np.all(np.diff(values) >= 0)
        rebuilt.append((vectors * values[None, :]) @ vectors.T)
    assert distance(*rebuilt) < 1e-12


@pytest.mark.parametrize("size", [None, 12])
def test_equal_parts_do_not_follow_token_counts(size):
    xs = [decaying(rows, n=12, seed=rows) for rows in (40, 300)]
    measure = jm.moments_of if size is None else lambda x: jm.sketch_of(x, size=size)
    tasks = [{"q": measure(jnp.asarray(x))} for x in xs]
    both = jm.equal_parts(jm.stack_moments(tasks)["q"])
    exact = sum(x.T @ x / len(x) for x in xs)
    probe = np.eye(12)
    assert distance(jm.times_gram(jnp.asarray(probe), both), exact) < 1e-12


def test_no_tokens():
    x = jnp.ones((3, 4))
    for stats in (
        jm.moments_of(x, mask=jnp.zeros(3, bool)),
        jm.sketch_of(x, size=2, mask=jnp.zeros(3, bool)),
    ):
        assert all(np.all(np.asarray(leaf) == 0) for leaf in stats)
        assert np.all(np.asarray(jm.times_gram(x, stats)) == 0)
        assert np.all(np.isfinite(jm.spectrum(stats)[0]))
        more = jm.merge_moments(stats, stats)
        assert np.all(np.isfinite(more.mean))


def test_files_keep_everything(tmp_path):
    x = jnp.asarray(decaying())
    task = {"b.q": jm.moments_of(x), "a": jm.sketch_of(x[:, :7], size=3)}
    stacked = jm.stack_moments([task, task])
    single = jax.tree.map(lambda x: x.astype(jnp.float32), task)
    for number, value in enumerate((task, stacked, single)):
        path = tmp_path / "new" / f"{number}.safetensors"
        jm.io.save_moments(path, value)
        jm.io.save_moments(path, value)
        back = jm.io.load_moments(path)
        assert list(back) == ["a", "b.q"]
        assert jax.tree.structure(back) == jax.tree.structure(value)
        for ours, saved in zip(
            jax.tree.leaves(back), jax.tree.leaves(value), strict=True
        ):
            assert ours.dtype == saved.dtype
            assert np.array_equal(ours, saved)
    assert len(list((tmp_path / "new").iterdir())) == 3
    assert jm.io.load_moments(path, ["a"]).keys() == {"a"}
    with pytest.raises(jm.io.AdapterError, match="no statistics of module 'c'"):
        jm.io.load_moments(path, ["a", "c"])


def test_damaged_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "moments.safetensors"
    good = {"q": jm.moments_of(jnp.ones((2, 3)))}
    with pytest.raises(jm.io.AdapterError, match="module 'q': LowRank"):
        jm.io.save_moments(
            path, {"q": jm.LowRank(b=jnp.ones((2, 1)), a=jnp.ones((1, 2)))}
        )
    assert not path.exists()
    jm.io.save_moments(path, good)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(jm.io.AdapterError, match="not a complete safetensors"):
        jm.io.load_moments(path)
    fields = {f"q:{name}": np.asarray(x) for name, x in good["q"]._asdict().items()}
    save_file(fields, path)
    with pytest.raises(jm.io.AdapterError, match="holds no statistics"):
        jm.io.load_moments(path)
    header = {"format": "jaxmerge-moments-1"}
    for changed, message in (
        ({"q:gram": np.full((3, 3), np.nan)}, "not all finite"),
        ({"q:gram": np.ones((3, 2))}, "do not fit"),
        ({"q:other": np.ones(3)}, "has fields"),
    ):
        save_file(fields | changed, path, metadata=header)
        with pytest.raises(jm.io.AdapterError, match=message):
            jm.io.load_moments(path)
