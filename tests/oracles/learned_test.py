"""Learned coefficients: merges, objectives, gradients and training of the TARA code."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import assert_close
from oracle import oracle

import jaxmerge as jm
from jaxmerge.updates import singular_value_decomposition

METHODS = {
    "weight": jm.adamerging(initial=0.4, clamp=False),
    "tara-a": jm.tara_a(),
    "tara-b": jm.tara_b(),
}
SINGLE = 2e-5  # every official number here was computed in float32
PATH = 3e-4  # ten steps of an optimiser divide by roots of small gradients


def prepared(entry, name):
    """A method and its bases, with the LoRA scale folded in."""
    return METHODS[name], bases_of(entry.case, METHODS[name])


@cache
def bases_of(case, method):
    return prepare(method, case.stacks(scaled=True))


@partial(jax.jit, static_argnums=0)
def prepare(method, stacks):
    return {module: method.prepare(stack) for module, stack in stacks.items()}


@partial(jax.jit, static_argnums=0)
def merge(method, phis, bases):
    return {name: jm.dense(method.apply(phis[name], bases[name])) for name in bases}


def in_our_shape(phi, method, basis):
    return jnp.asarray(phi, jnp.float64).reshape(method.init(basis).shape)


@oracle("tara.weight*", "tara.tara-a*", "tara.tara-b*")
def test_merges(entry):
    method, bases = prepared(entry, entry.family.removeprefix("tara."))
    if entry.raises:  # more directions than outputs: ours keeps min(m, K)
        first = {module: method.init(basis) for module, basis in bases.items()}
        updates = merge(method, first, bases)
        assert all(np.all(np.isfinite(update)) for update in updates.values())
        return
    phis = {
        module: in_our_shape(entry.read(f"phi/{module}"), method, basis)
        for module, basis in bases.items()
    }
    entry.check(merge(method, phis, bases))


@oracle("tara.init/*")
def test_first_coefficients(entry):
    """The code starts at lamda / T; its count of TARA-B follows from the shapes."""
    for name in METHODS:
        _, bases = prepared(entry, name)
        initial = entry["scaler"] / entry.case.tasks
        make = {"weight": jm.adamerging, "tara-a": jm.tara_a, "tara-b": jm.tara_b}[name]
        for module, basis in bases.items():
            ours = make(initial=initial).init(basis)
            official = entry.read(f"{name}/{module}")
            assert_close(ours.ravel(), official.ravel(), 1e-6, f"{entry.id} {name}")


def rank_regulariser(updates, phis):
    """``mean over modules of 1 - erank(D) / number of coefficients``."""
    ranks = [
        jm.effective_rank(singular_value_decomposition(updates[module])[1])
        / phis[module].size
        for module in updates
    ]
    return jnp.mean(1 - jnp.stack(ranks))


@partial(jax.jit, static_argnums=0)
def regulariser(method, phis, bases):
    def loss(phis):
        updates = {m: method.apply(phis[m], bases[m]) for m in bases}
        return rank_regulariser(updates, phis)

    return jax.value_and_grad(loss)(phis)


@oracle("tara.reg_loss/*")
def test_regulariser(entry):
    name = entry.name.removeprefix("tara.reg_loss/")
    if entry.raises:
        assert "must match the existing size" in entry.raises
        return
    method, bases = prepared(entry, name)
    official = entry.case.entries[f"tara.{name}"]
    phis = {
        module: in_our_shape(official.peek(f"phi/{module}"), method, basis)
        for module, basis in bases.items()
    }
    value, gradient = regulariser(method, phis, bases)
    value, gradient = jax.tree.map(lambda x: entry["lambda_reg"] * x, (value, gradient))
    assert_close(value.reshape(1), entry.read("loss").reshape(1), SINGLE, entry.id)
    for module in bases:
        grad = entry.read(f"grad_phi/{module}")
        assert_close(gradient[module].ravel(), grad.ravel(), 2e-3, entry.id)


def options_of(entry):
    arrays = entry.case.arrays
    return {
        "preference": jnp.asarray(
            arrays[f"in/pref/{entry['preference']}"], jnp.float64
        ),
        "anchors": jnp.asarray(arrays[f"in/baseline/{entry['baseline']}"], jnp.float64),
    }


def scalarise(values, options, alpha):
    """Linear unless there is an alpha."""
    if alpha is None:
        return jm.linear_scalarisation(values, **options)
    return jm.smooth_tchebycheff(values, alpha=alpha, **options)


@jax.jit
def scalarised(logits, options, alpha):
    def loss(logits):
        values = jnp.stack([jm.entropy(x) for x in logits])
        return scalarise(values, options, alpha), values

    return jax.value_and_grad(loss, has_aux=True)(logits)


@oracle("stch.*")
def test_scalarisations(entry):
    arrays = entry.case.arrays
    logits = [jnp.asarray(arrays[f"in/logits/{t}"], jnp.float64) for t in range(3)]
    alpha = None if entry.family == "stch.default" else entry["alpha"]
    (value, values), gradients = scalarised(logits, options_of(entry), alpha)
    assert_close(values, entry.read("H").ravel(), SINGLE, entry.id)
    official = [entry.read(f"grad_logits/{t}") for t in range(3)]
    if not np.all(np.isfinite(entry.read("loss"))):  # ours does not overflow
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
        return
    assert_close(value.reshape(1), entry.read("loss").reshape(1), SINGLE, entry.id)
    for ours, theirs in zip(gradients, official, strict=True):
        assert_close(ours, theirs, SINGLE, entry.id)


@oracle("adamerging.entropy/*")
def test_entropy(entry):
    logits = jnp.asarray(entry.case.arrays[f"in/logits/{entry['logits']}"], jnp.float64)
    value, gradient = jax.value_and_grad(lambda x: jm.entropy(x, epsilon=1e-8))(logits)
    assert_close(value.reshape(1), entry.read("loss").reshape(1), SINGLE, entry.id)
    assert_close(gradient, entry.read("grad_logits"), SINGLE, entry.id)


@partial(jax.jit, static_argnums=0)
def network_loss(name, phis, bases, arrays, options, alpha, lambda_reg):
    """The loss of a two-layer network in the coefficients, with its gradient."""
    method = METHODS[name]

    def logits(updates):
        first, second = (
            arrays[f"{module}/W"] + jm.dense(updates[module])
            for module in ("blk.fc1", "blk.fc2")
        )
        for t in range(3):
            hidden = jnp.tanh(arrays[f"x/{t}"] @ first.T)
            yield (hidden @ second.T) @ arrays[f"H/{t}"].T

    def loss(phis):
        updates = {m: method.apply(phis[m], bases[m]) for m in bases}
        outputs = list(logits(updates))
        values = jnp.stack([jm.entropy(x) for x in outputs])
        expanded = phis
        if name == "weight":  # one coefficient stands for r directions
            expanded = {m: phis[m][bases[m].owners] for m in bases}
        regularised = lambda_reg * rank_regulariser(updates, expanded)
        return scalarise(values, options, alpha) + regularised, outputs

    return jax.value_and_grad(loss, has_aux=True)(phis)


def of_network(entry):
    """The method of an entry, its bases, and the loss in phis."""
    name, prefix = entry["merge_type"], "in/net/"
    method, bases = prepared(entry, name)
    arrays = {
        key.removeprefix(prefix): jnp.asarray(value, jnp.float64)
        for key, value in entry.case.arrays.items()
        if key.startswith(prefix)
    }
    alpha = None if entry.get("loss_type") == "default" else entry["alpha"]
    given = bases, arrays, options_of(entry), alpha, float(entry["lambda_reg"])
    return method, bases, lambda phis: network_loss(name, phis, *given)


@oracle("phi.grad/*")
def test_gradients_through_a_network(entry):
    method, bases, loss = of_network(entry)
    phis = {
        module: in_our_shape(
            entry.case.arrays[f"in/phi/{entry['merge_type']}/{module}"], method, basis
        )
        for module, basis in bases.items()
    }
    (value, logits), gradient = loss(phis)
    assert_close(value.reshape(1), entry.read("loss").reshape(1), 2e-5, entry.id)
    for t in range(3):
        if entry.has(f"logits/{t}"):
            assert_close(logits[t], entry.read(f"logits/{t}"), 2e-5, entry.id)
    for module in bases:
        official = entry.read(f"grad_phi/{module}").ravel()
        assert_close(gradient[module].ravel(), official, 2e-4, f"{entry.id} {module}")


@oracle("phi.adamw/*")
def test_training(entry):
    method, bases, loss = of_network(entry)
    optimiser = optax.adamw(entry["lr"], weight_decay=entry["weight_decay"])
    phis = {
        module: jnp.full_like(method.init(basis), entry["lamda"] / entry.case.tasks)
        for module, basis in bases.items()
    }
    state, losses = optimiser.init(phis), []
    for _ in range(entry["steps"]):
        (value, _), gradient = loss(phis)
        losses.append(float(value))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its counts in
            step, state = optimiser.update(gradient, state, phis)
        phis = optax.apply_updates(phis, step)
    assert_close(losses, entry.read("losses").ravel(), 2e-5, entry.id)
    for module in bases:
        official = entry.read(f"phi/{module}").ravel()
        assert_close(phis[module].ravel(), official, PATH, f"{entry.id} {module}")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ranks", [(2, 3, 4), (2, 0, 3), (6, 6, 6)])
def test_equal_coefficients_are_task_arithmetic(name, ranks):
    rng = np.random.default_rng(0)
    stack = jm.stack_adapters(
        [
            (rng.normal(size=(9, r)), rng.normal(size=(r, 11))) if r else None
            for r in ranks
        ],
        dtype=np.float64,
    )
    method, stacks = METHODS[name], {"q": stack}
    bases = prepare(method, stacks)
    phis = {"q": jnp.full_like(method.init(bases["q"]), 0.4)}
    exact = 0.4 * np.sum(np.matmul(stack.b, stack.a), axis=0)
    assert_close(merge(method, phis, bases)["q"], exact, 1e-12)
