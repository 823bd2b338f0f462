"""Bases that are read parameter by parameter onto a mesh, by rules."""

import causal_samples
import jax
import jax.numpy as jnp
import learn_samples
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jaxmerge as jm
from jaxmerge import Refusal, models
from jaxmerge.models import hub
from jaxmerge.tasks import load_base

pytestmark = pytest.mark.usefixtures("standard_promotion")

RULES = [
    ("down_proj.kernel$", PartitionSpec(None, "data")),
    ("embedding$", PartitionSpec(None, "data")),
    ("kernel$", PartitionSpec("data")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return learn_samples.llama(tmp_path_factory.mktemp("llama"))


def bits(x):
    return np.asarray(x).tobytes()


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_each_device_holds_its_part_of_the_same_bits(folder, dtype):
    mesh = jm.data_mesh()
    whole = load_base(folder, dtype=dtype).params
    spread = load_base(folder, dtype=dtype, mesh=mesh, rules=RULES).params
    assert jax.tree.structure(whole) == jax.tree.structure(spread)
    places = jm.by_rules(mesh, whole, RULES)
    several = 0
    for x, y, place in zip(*map(jax.tree.leaves, (whole, spread, places)), strict=True):
        assert y.dtype == (dtype or x.dtype)
        assert y.sharding == place
        assert {shard.device for shard in y.addressable_shards} == set(jax.devices())
        for shard in y.addressable_shards:
            assert bits(shard.data) == bits(x[shard.index])
        several += shard.data.size < x.size
    assert several > 5
    down = spread["model"]["layers"]["0"]["mlp"]["down_proj"]["kernel"]
    assert down.addressable_shards[0].data.shape == (24, 2)


def test_one_tensor_at_a_time_is_held_whole(folder, monkeypatch):
    """A tensor is read when the one before it lies on its devices."""
    order = []
    read, place = hub.Safetensors.read, jm.spread._placed
    monkeypatch.setattr(
        hub.Safetensors, "read", lambda *a: (order.append("read"), read(*a))[1]
    )
    monkeypatch.setattr(
        jm.spread, "_placed", lambda *a: (order.append("place"), place(*a))[1]
    )
    load_base(folder, mesh=jm.data_mesh(), rules=RULES)
    assert order == ["read", "place"] * (len(order) // 2)
    assert len(order) > 20


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_encoders_too(kind, tmp_path):
    getattr(learn_samples, kind)(tmp_path)
    rules = [("attn|attention.*kernel$", PartitionSpec("data"))]
    mesh = jm.data_mesh(jax.devices()[:2])
    spread = load_base(tmp_path, mesh=mesh, rules=rules).params
    jax.tree.map(np.testing.assert_array_equal, spread, load_base(tmp_path).params)


@pytest.mark.thorough
def test_a_fit_with_spread_parameters_is_that_with_whole_ones(tmp_path):
    base_folder = causal_samples.base(tmp_path, tied=False)
    mesh = jm.data_mesh()
    ids = np.arange(8 * 6, dtype=np.int32).reshape(8, 6) % 20
    module = "model.layers.0.self_attn.q_proj"
    found = []
    for how in ({}, {"mesh": mesh, "rules": RULES}):
        base = load_base(base_folder, "causal", remat=bool(how), **how)
        m = n = base.config.hidden_size
        rng = np.random.default_rng(0)
        rows = [(rng.normal(size=(m, 2)), rng.normal(size=(2, n))) for _ in range(2)]
        stacks = {module: jm.stack_adapters(rows)}

        def losses(params, updates, batch, base=base):
            apply = models.with_updates(base.apply, updates)
            outputs = {
                task: apply(params, inputs).astype(jnp.float32)
                for task, inputs in batch.items()
            }
            return {task: jnp.mean(x**2) for task, x in outputs.items()}

        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "places": np.full((8, 1), 5, np.int32),
            "next_ids": np.ones((8, 1), np.int32),
        }
        batches = [{"one": inputs, "two": inputs}] * 2
        options = {"steps": 2, "params": base.params, "mesh": how.get("mesh")}
        fitted = jm.fit(
            *(jm.tara_a(), ("one", "two"), stacks, losses, batches, optax.adam(0.1)),
            **options,
        )
        found.append(fitted)
    one, other = found
    np.testing.assert_allclose(
        one.history.losses, other.history.losses, rtol=1e-4, atol=1e-6
    )
    assert np.ptp(np.asarray(one.history.objective)) > 0


def test_rules_that_do_not_fit_are_refused(folder):
    mesh = jm.data_mesh(jax.devices()[:3])
    with pytest.raises(Refusal, match=r"kernel \(16, .*cannot be spread"):
        load_base(folder, mesh=mesh, rules=[("kernel$", PartitionSpec("data"))])
    with pytest.raises(Refusal, match=r"axis 'model', the mesh has data"):
        load_base(folder, mesh=mesh, rules=[("kernel$", PartitionSpec("model"))])
    with pytest.raises(Refusal, match=r"give mesh=jaxmerge.data_mesh\(\)"):
        load_base(folder, rules=RULES)
