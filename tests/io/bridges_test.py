"""Trees of JAX libraries: what the libraries computed, and back into their trees."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax_models import Gemma, Linen, Nnx
from reference import ROOT

import jaxmerge as jm
from jaxmerge.stacks import concatenate

ALPHA = {"qwix_linen": {"conv": 8, ".*": 6}, "tunix_gemma": 6, "gemma": "rank"}
FROM = {
    "qwix_linen": jm.io.from_qwix,
    "tunix_gemma": jm.io.from_tunix,
    "gemma": jm.io.from_gemma,
}
TO = {
    "qwix_linen": jm.io.to_qwix,
    "tunix_gemma": jm.io.to_tunix,
    "gemma": jm.io.to_gemma,
}
LIBRARIES = tuple(FROM)


@cache
def sample(name):
    """The tree that a library made, inputs, and the outputs with the adapter."""
    with np.load(ROOT / "tests/data/jax_trees" / f"{name}.npz") as arrays:
        tree = {}
        for path in arrays:
            *places, last = path.split("/")
            inside = tree
            for key in places:
                inside = inside.setdefault(key, {})
            inside[last] = arrays[path]
    return tree.pop("tree"), tree["x"], tree["y"]


@cache
def adapter(name):
    return FROM[name](sample(name)[0], alpha=ALPHA[name])


def dense(name):
    return {m: np.asarray(s.b[0] @ s.a[0]) for m, s in adapter(name).stacks.items()}


def test_qwix_of_linen_with_a_convolution_and_a_scanned_stack():
    tree, x, y = sample("qwix_linen")
    updates = dense("qwix_linen")
    params = jax.tree.map(np.copy, tree)
    for module in ("conv", "attn.q_proj", "attn.kv_proj", "attn.o_proj"):
        place = params
        for key in module.split("."):
            place = place[key]
        place["kernel"] += updates[module].T.reshape(place["kernel"].shape)
    for layer in range(2):
        for name, place in params["layers"].items():
            update = updates[f"layers.{layer}.{name}"]
            place["kernel"][layer] += update.T.reshape(place["kernel"].shape[1:])
    found = Linen().apply({"params": without_factors(params)}, x)
    np.testing.assert_allclose(found, y, atol=1e-6 * np.abs(y).max())


def test_tunix_of_einsums_whose_keys_and_values_share_a():
    tree, x, y = sample("tunix_gemma")
    updates = dense("tunix_gemma")
    params = jax.tree.map(np.copy, tree)
    for number, layer in params["layers"].items():
        names = [f"model.layers.{number}.self_attn.{n}_proj" for n in "qkvo"]
        q, k, v, o = (updates[name] for name in names)
        attention = layer["attn"]
        attention["q_einsum"]["w"] += by_head(q)
        attention["kv_einsum"]["w"] += np.stack([by_head(k), by_head(v)])
        attention["attn_vec_einsum"]["w"] += o.T.reshape(2, 4, 8)
        for name in ("up_proj", "down_proj"):
            update = updates[f"model.layers.{number}.mlp.{name}"]
            layer["mlp"][name]["kernel"] += update.T
        shared = [adapter("tunix_gemma").stacks[name].a for name in names[1:3]]
        np.testing.assert_array_equal(*shared)
    model = Nnx(nnx.Rngs(0))
    params["layers"] = {int(n): layer for n, layer in params["layers"].items()}
    nnx.update(model, without_factors(params))
    np.testing.assert_allclose(model(x), y, atol=1e-6 * np.abs(y).max())


def test_gemma_whose_gate_and_up_projection_share_a():
    tree, x, y = sample("gemma")
    updates = dense("gemma")
    params = jax.tree.map(np.copy, tree["layer_0"]["mlp"])
    place = "model.layers.0.mlp."
    gate = [updates[f"{place}{name}_proj"] for name in ("gate", "up")]
    params["gating_einsum"]["kernel"] += np.stack(gate)
    params["linear"]["kernel"] += updates[f"{place}down_proj"].T
    found = Gemma().apply({"params": without_factors(params)}, x)
    np.testing.assert_allclose(found, y, atol=1e-6 * np.abs(y).max())


def by_head(update):
    """[(N, H), D] -> [N, D, H]"""
    return update.reshape(2, 4, 8).transpose(0, 2, 1)


def without_factors(tree):
    if not isinstance(tree, dict):
        return jnp.asarray(tree)
    kept = {k: v for k, v in tree.items() if k != "lora" and "_lora_" not in str(k)}
    return {k: without_factors(v) for k, v in kept.items()}


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_adapter_goes_back_into_its_tree(name):
    tree = sample(name)[0]
    found = TO[name](adapter(name), like=tree, alpha=ALPHA[name])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, tree)


@pytest.mark.parametrize("name", LIBRARIES)
def test_half_the_sum_of_an_adapter_with_itself_is_itself(name):
    """Directions double, so that the tree needs twice the rank."""
    tree = sample(name)[0]
    both = FROM[name](tree, tree, alpha=ALPHA[name])
    updates = {
        module: jm.LowRank(concatenate(stack).b / 2, concatenate(stack).a)
        for module, stack in both.stacks.items()
    }
    found = TO[name](updates, like=tree, alpha=5)
    again = FROM[name](found, alpha=5)
    for module, stack in again.stacks.items():
        expected = dense(name)[module]
        assert stack.ranks[0] == 2 * adapter(name).stacks[module].ranks[0]
        np.testing.assert_allclose(stack.b[0] @ stack.a[0], expected, atol=2e-6)


@pytest.mark.parametrize("name", LIBRARIES)
def test_modules_that_no_longer_share_a_are_still_exact(name):
    """Each module with its own factors of the same update, as an SVD leaves them."""
    tree = sample(name)[0]
    updates = {}
    for module, update in dense(name).items():
        u, s, v = np.linalg.svd(update, full_matrices=False)
        updates[module] = jm.LowRank(u[:, :3] * s[:3], v[:3])
    again = FROM[name](TO[name](updates, like=tree, alpha=7), alpha=7)
    for module, stack in again.stacks.items():
        expected = dense(name)[module]
        np.testing.assert_allclose(stack.b[0] @ stack.a[0], expected, atol=2e-6)


class Wrapped(nnx.Module):
    def __init__(self, rngs):
        self.q = nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs)
        inner = nnx.Linear(6, 4, rngs=rngs)
        self.o = nnx.LoRA(6, 3, 4, base_module=inner, rngs=rngs)
        self.layers = stacked(rngs.split(3))

    def __call__(self, x):
        return self.o(self.q(x))


@nnx.vmap
def stacked(rngs):
    return nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)


def states(count):
    """A model of flax and random states of its adapters."""
    model = Wrapped(nnx.Rngs(0))
    leaves, structure = jax.tree.flatten(nnx.state(model, nnx.LoRAParam))
    keys = jax.random.split(jax.random.key(3), count * len(leaves))
    arrays = [
        jax.random.normal(key, leaves[i % len(leaves)].shape, jnp.float32)
        for i, key in enumerate(keys)
    ]
    groups = [arrays[i * len(leaves) :][: len(leaves)] for i in range(count)]
    return model, [structure.unflatten(group) for group in groups]


def test_a_state_of_flax_computes_what_its_adapters_say():
    model, (first, second) = states(2)
    adapters = jm.io.from_nnx(first, second, alpha="rank", names=["one", "two"])
    assert adapters.names == ("one", "two")
    assert {m: s.ranks for m, s in adapters.stacks.items()} == {
        **{f"layers.{i}": (2, 2) for i in range(3)},
        **{"o": (3, 3), "q": (2, 2)},
    }
    x = jax.random.normal(jax.random.key(1), (5, 4), jnp.float32)
    nnx.update(model, second)
    expected = model(x)
    found = jm.io.to_nnx(adapters.task("two"), like=first)
    assert type(found) is type(first)
    nnx.update(model, found)
    np.testing.assert_array_equal(model(x), expected)
    kernel = np.asarray(model.q.kernel[...])
    stack = adapters.stacks["q"]
    nnx.update(model, first)
    np.testing.assert_allclose(
        np.asarray(x) @ (kernel + np.asarray(stack.b[0] @ stack.a[0]).T),
        model.q(x),
        atol=2e-6,
    )


def test_a_merge_goes_into_the_model_and_alpha_scales_it():
    model, trees = states(2)
    adapters = jm.io.from_nnx(*trees, alpha=1.0)  # ranks 2 and 3: scales 1/2 and 1/3
    merged = {m: concatenate(stack) for m, stack in adapters.stacks.items()}
    found = jm.io.to_nnx(merged, like=trees[0])
    nnx.update(model, found)
    a, b = model.o.lora_a[...], model.o.lora_b[...]
    assert a.shape == (6, 6)
    expected = sum(t["o"]["lora_a"][...] @ t["o"]["lora_b"][...] / 3 for t in trees)
    np.testing.assert_allclose(a @ b, expected, atol=2e-6)


def test_new_trees_have_the_names_of_the_modules():
    updates = {"layers.0.q": jm.LowRank(jnp.ones((3, 2)), jnp.ones((2, 4)))}
    tree = jm.io.to_nnx(updates)["layers"]["0"]["q"]
    assert {k: v.shape for k, v in tree.items()} == {"lora_a": (4, 2), "lora_b": (2, 3)}
    tree = jm.io.to_qwix(updates, alpha=4)["layers"]["0"]["q"]
    np.testing.assert_array_equal(tree["kernel_lora_b"], np.full((2, 3), 0.5))
    with pytest.raises(jm.io.AdapterError, match="only the tree of its model"):
        jm.io.to_tunix(updates, like=None, alpha=4)


def factors(a, b, name="fc", suffix="kernel_lora_"):
    return {name: {f"{suffix}a": np.ones(a), f"{suffix}b": np.ones(b)}}


@pytest.mark.parametrize(
    ("tree", "options", "said"),
    [
        (factors((4, 2), (2, 3)), {}, r"holds no alpha.*alpha=<number>.*'rank'"),
        (factors((4, 2), (2, 3)), {"alpha": {"q": 8}}, r"has none for 'fc'"),
        (factors((4, 2), (2, 3)), {"alpha": 0}, "must be finite and not zero"),
        (factors((2, 4, 2), (2, 2, 3)), {"alpha": 8}, r"may be .*one layer.*scan_axis"),
        (factors((4, 5, 2), (2, 5, 3)), {"alpha": 8}, r"may be .*one layer.*scan_axis"),
        (factors((4, 2), (3, 5)), {"alpha": 8}, r"'fc': a \(4, 2\) and b \(3, 5\)"),
        (factors((4, 0), (0, 5)), {"alpha": 8}, "do not fit each other"),
        ({"fc": {"kernel_lora_a": np.ones((4, 2))}}, {"alpha": 8}, "only one of its"),
        ({"fc": {"kernel": np.ones((4, 2))}}, {"alpha": 8}, "no LoRA factors"),
        (factors((4, 2), (2, 3), suffix="lora_"), {"alpha": 8}, "leave layout='qwix'"),
        (
            factors((4, 2), (2, 3)) | factors((4, 2), (2, 3), "q", "lora_"),
            {"alpha": 8},
            "factors of flax nnx.LoRA and a LoRA tree of qwix",
        ),
        (
            {"fc": {**factors((4, 2), (2, 3))["fc"],
                    **factors((4, 2), (2, 3), suffix="w_lora_")["fc"]}},
            {"alpha": 8},
            "are factors of one module",
        ),
        (factors((4, 2), (2, 3)), {"alpha": 8, "names": ["a", "b"]}, "expected 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(tree, options, said):
    with pytest.raises(jm.io.AdapterError, match=said):
        jm.io.from_qwix(tree, **options)


@pytest.mark.parametrize(
    ("axis", "modules"),
    [("none", ["fc"]), (0, ["fc.0", "fc.1"]), (1, ["fc.0", "fc.1"])],
)
def test_the_axis_of_a_stack_is_taken_as_said(axis, modules):
    tree = factors((2, 2, 2), (2, 2, 2))
    adapters = jm.io.from_qwix(tree, alpha=8, scan_axis=axis)
    assert list(adapters.stacks) == modules
    found = jm.io.to_qwix(adapters, like=tree, alpha=8, scan_axis=axis)
    np.testing.assert_array_equal(found["fc"]["kernel_lora_b"], np.ones((2, 2, 2)))


def test_what_has_no_place_in_a_tree_is_refused():
    tree = factors((4, 2), (2, 3))
    update = jm.LowRank(jnp.diag(jnp.array([1.0, 2.0, 3.0])), jnp.ones((3, 4)))
    for updates, options, said in (
        ({"other": update}, {}, r"no place for 'other'; it adapts 'fc'"),
        ({"fc": jm.LowRank(update.b.T, update.b)}, {}, r"is \(3, 4\) in the tree"),
        ({"fc": update}, {"rank": 2}, "needs rank 3, more than 2"),
        ({"fc": update}, {"rank": 0}, "expected a positive integer"),
        ({"fc": jnp.ones((3, 4))}, {}, "its update is dense"),
        (jm.io.from_qwix(tree, tree, alpha=1), {}, "holds one adapter"),
    ):
        with pytest.raises(jm.io.AdapterError, match=said):
            jm.io.to_qwix(updates, like=tree, alpha=8, **options)
    with pytest.raises(jm.io.AdapterError, match="holds no alpha"):
        jm.io.to_qwix({"fc": update}, like=tree)
    found = jm.io.to_qwix({"fc": update}, like=tree, alpha=8, rank=5)
    assert found["fc"]["kernel_lora_a"].shape == (4, 5)
