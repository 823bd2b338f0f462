"""Statistics of inputs of a model: streams of batches, masks, devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from methods import distance

import jaxmerge as jm


class Model(nn.Module):
    """Two layers on embedded tokens; the second sees what the first makes."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch):
        x = nn.Dense(6, name="first", dtype=self.dtype)(batch["x"])
        return nn.Dense(3, name="second", dtype=self.dtype)(jnp.tanh(x))


def made(tokens=7, count=16, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, tokens, 5)) + 0.3
    keep = np.arange(tokens)[None, :] < rng.integers(1, tokens + 1, size=(count, 1))
    return {"x": jnp.asarray(x, jnp.float32), "mask": jnp.asarray(keep)}


def in_pieces(batch, size):
    count = batch["x"].shape[0]
    return [
        {name: x[i : i + size] for name, x in batch.items()}
        for i in range(0, count, size)
    ]


@pytest.fixture(scope="module")
def params():
    return Model().init(jax.random.key(0), made())


MODULES = ("first", "second")


def collect(params, batches, **options):
    return jm.collect_inputs(Model().apply, params, batches, modules=MODULES, **options)


def counted(batch):
    return batch["mask"]


def test_streaming_equals_the_moments_of_all_rows(params):
    batch = made()
    stats = collect(params, in_pieces(batch, 3), mask=counted)
    rows = np.asarray(batch["x"], np.float64)[np.asarray(batch["mask"])]
    hidden = params["params"]["first"]
    after = np.tanh(rows @ np.asarray(hidden["kernel"]) + np.asarray(hidden["bias"]))
    for name, exact in (("first", rows), ("second", after)):
        assert stats[name].count == len(rows)
        assert distance(stats[name].mean, exact.mean(0)) < 1e-6
        assert distance(stats[name].gram, exact.T @ exact) < 1e-6
    together = collect(params, [batch], mask=counted)
    for name in MODULES:
        for ours, one in zip(stats[name], together[name], strict=True):
            assert distance(ours, one) < 1e-6


def test_padding_does_not_count_whatever_it_holds(params):
    batch = made()
    poisoned = batch | {"x": jnp.where(batch["mask"][..., None], batch["x"], jnp.nan)}
    for sketch in (None, 4):
        clean = collect(params, [batch], mask=counted, sketch=sketch)
        same = collect(params, [poisoned], mask=counted, sketch=sketch)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, clean, same))
        everything = collect(params, [batch], sketch=sketch)
        assert distance(everything["first"][2], clean["first"][2]) > 0.1


def test_one_compiled_step_for_all_batches(params):
    batches, traces = in_pieces(made(), 4), []

    def apply(params, batch):
        traces.append(None)
        return Model().apply(params, batch)

    jm.collect_inputs(apply, params, batches, modules=MODULES)
    assert len(traces) == 2  # shapes of the first batch, and the step


def test_a_collector_compiles_once_for_all_streams_of_batches(params):
    batches, traces = in_pieces(made(), 4), []

    def apply(params, batch):
        traces.append(None)
        return Model().apply(params, batch)

    gather = jm.collector(apply, modules=MODULES, mask=counted)
    first, again = gather(params, batches), gather(params, batches)
    assert len(traces) == 2
    same = collect(params, batches, mask=counted)
    for ours in (first, again):
        assert jax.tree.all(jax.tree.map(jnp.array_equal, ours, same))


def test_a_mask_can_be_for_some_modules(params):
    batch = made()
    stats = collect(params, [batch], mask=lambda batch: {"first": batch["mask"]})
    masked = collect(params, [batch], mask=counted)
    everything = collect(params, [batch])
    assert np.array_equal(stats["first"].gram, masked["first"].gram)
    assert np.array_equal(stats["second"].gram, everything["second"].gram)
    assert stats["second"].count == 16 * 7 > stats["first"].count


def test_sharded_batches_give_the_same_moments(params):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    batches = in_pieces(made(), 8)
    sharded = [jax.device_put(batch, spread) for batch in batches]
    assert len(sharded[0]["x"].sharding.device_set) == 8
    replicated = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    for sketch in (None, 4):
        one = collect(params, batches, mask=counted, sketch=sketch)
        many = collect(replicated, sharded, mask=counted, sketch=sketch)
        for name in MODULES:
            assert one[name].count == many[name].count
            squares = [
                x[2].T @ x[2] if sketch else x[2] for x in (many[name], one[name])
            ]
            assert distance(*map(jax.device_get, squares)) < 1e-5


def test_inputs_of_an_adapted_model(params):
    batch, rng = made(), np.random.default_rng(1)
    update = jm.LowRank(
        b=jnp.asarray(rng.normal(size=(6, 2)), jnp.float32),
        a=jnp.asarray(rng.normal(size=(2, 5)), jnp.float32),
    )
    adapted = jm.models.with_updates(Model().apply, {"first": update})
    stats = jm.collect_inputs(adapted, params, [batch], modules=MODULES)
    layer = params["params"]["first"]
    kernel = np.asarray(layer["kernel"]) + np.asarray(jm.dense(update)).T
    hidden = np.tanh(
        np.asarray(batch["x"]).reshape(-1, 5) @ kernel + np.asarray(layer["bias"])
    )
    assert distance(stats["second"].gram, hidden.T @ hidden) < 1e-5


def test_refusals(params):
    batch = made()
    with pytest.raises(ValueError, match="no batch"):
        collect(params, [])
    with pytest.raises(ValueError, match=r"first has inputs .*\(16, 7\).*\(16, 1\)"):
        collect(params, [batch], mask=lambda batch: batch["mask"][:, :1])
    with pytest.raises(ValueError, match="thrid: the model runs no linear layer"):
        jm.collect_inputs(Model().apply, params, [batch], modules=["thrid"])
    exact, sketch = (collect(params, [batch], sketch=s)["first"] for s in (None, 3))
    with pytest.raises(ValueError, match="cannot merge a sketch"):
        jm.merge_moments(exact, sketch)
    with pytest.raises(ValueError, match="at least one row"):
        collect(params, [batch], sketch=0)
    one = collect(params, [batch])
    with pytest.raises(ValueError, match="module 'second' has statistics in one"):
        jm.stack_moments([one, {"first": one["first"]}])
    with pytest.raises(ValueError, match="no task"):
        jm.stack_moments([])


def test_collected_sketches_keep_the_guarantee(params):
    batches = in_pieces(made(), 3)
    exact = collect(params, batches, mask=counted)
    sketches = collect(params, batches, mask=counted, sketch=3)
    for name in MODULES:
        sketch = sketches[name]
        assert sketch.rows.shape == (3, exact[name].mean.size)
        assert sketch.count == exact[name].count
        assert distance(sketch.mean, exact[name].mean) < 1e-6
        error = np.linalg.eigvalsh(exact[name].gram - sketch.rows.T @ sketch.rows)
        noise = 1e-5 * float(jnp.trace(exact[name].gram))
        assert -noise < error.min()
        assert 0 < error.max() < float(sketch.lost) + noise
