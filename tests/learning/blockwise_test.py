"""Laws of merges that are learned block by block, by gradients and in closed form."""

from functools import partial

import flax.linen as nn
import numpy as np
import optax
import pytest
from fit_problem import adamw

import jaxmerge as jm
from jaxmerge.models.blocks import Block, Blocks, Stream

THOROUGH = pytest.mark.thorough
M, N, LAYER = 5, 7, "only.dense"
LINEAR = {
    "tara_a": jm.tara_a(),
    "tara_b": jm.tara_b(),
    "adamerging": jm.adamerging(clamp=False),
    "calibrated": jm.compose(jm.tara_a(), before=jm.calibrate),
}


class Layer(nn.Module):
    """One linear layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(M, name="dense", param_dtype=x.dtype)(x)


def apply_layer(params, stream):
    return stream._replace(hidden=Layer().apply({"params": params}, stream.hidden))


MODEL = Blocks(
    Block("", lambda _, inputs: Stream(*inputs), lambda _: None),
    (Block("only.", apply_layer, lambda params: params),),
)


def problem(ranks=(2, 1), dtype=np.float64, adapters=None):
    """Adapters of one layer, inputs of which some do not count, and weights."""
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(M, r)), rng.normal(size=(r, N))) for r in ranks]
    stacks = {LAYER: jm.stack_adapters(adapters or pairs, dtype=dtype)}
    tasks = tuple(f"task{i}" for i in range(len(stacks[LAYER].ranks)))
    shape = (8, 3)
    inputs = {
        t: (rng.normal(size=(*shape, N)).astype(dtype), rng.random(shape) < 0.7)
        for t in tasks
    }
    kernel, bias = rng.normal(size=(N, M)), rng.normal(size=M)
    dense = {"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)}
    return tasks, stacks, inputs, {"dense": dense}


def solve(learned, given, **options):
    tasks, stacks, inputs, params = given
    return jm.solve_blocks(
        learned, tasks, stacks, MODEL, inputs, params=params, **options
    )


def directly(learned, given, rho=None):
    """phi by numpy's least squares, on one row for each output of each token."""
    tasks, stacks, inputs, params = given
    basis = learned.prepare(stacks[LAYER])
    shape = learned.init(basis).shape
    units = np.eye(int(np.prod(shape)), dtype=stacks[LAYER].b.dtype).reshape(-1, *shape)
    parts = [np.asarray(jm.dense(learned.apply(unit, basis))) for unit in units]
    left, right = [], []
    for index, task in enumerate(tasks):
        x, counted = inputs[task]
        x = x[counted]
        b, a = (np.asarray(f[index]) for f in (stacks[LAYER].b, stacks[LAYER].a))
        y = x @ params["dense"]["kernel"] + params["dense"]["bias"]
        y = y + x @ a.T @ b.T
        weight = np.sqrt((1 if rho is None else rho[index]) / len(x))
        weight = weight / np.linalg.norm(y, axis=1, keepdims=True)
        left.append(
            np.stack([weight * (x @ p.T) for p in parts], -1).reshape(-1, len(parts))
        )
        right.append((weight * (x @ a.T @ b.T)).reshape(-1))
    phi, *_ = np.linalg.lstsq(np.concatenate(left), np.concatenate(right), rcond=None)
    return phi.reshape(shape)


@pytest.mark.parametrize(
    ("name", "dtype", "near"),
    [
        ("tara_a", np.float64, 1e-6),
        ("tara_a", np.float32, 2e-3),
        ("tara_b", np.float64, 1e-6),
        *(
            pytest.param(*case, marks=THOROUGH)
            for case in (
                ("tara_b", np.float32, 2e-3),
                ("adamerging", np.float64, 1e-6),
                ("calibrated", np.float64, 1e-6),
            )
        ),
    ],
)
def test_of_one_layer_it_is_least_squares(name, dtype, near):
    given = problem(dtype=dtype)
    rho = (0.3, 0.7)
    exact = {"ridge": 1e-12} if dtype == np.float64 else {}
    found = solve(LINEAR[name], given, batch=3, preference=rho, **exact)
    phi = found.phis[LAYER]
    assert phi.dtype == dtype
    np.testing.assert_allclose(
        phi, directly(LINEAR[name], given, rho), rtol=near, atol=near
    )
    assert found.history.losses.shape == (1, 2, 2)
    before, after = found.history.objective[0]
    assert 0 < after < before


def fit(learned, given, **options):
    tasks, stacks, inputs, params = given
    options = {"steps": 60, "optimizer": adamw(0.1), "batch": 8, "search": 0} | options
    return jm.fit_blocks(
        learned, tasks, stacks, MODEL, inputs, params=params, **options
    )


def test_gradients_find_the_same_coefficients():
    """The shared singular directions are coordinates, in which this is quick."""
    given = problem()
    falling = optax.cosine_decay_schedule(0.1, 200)
    found = fit(LINEAR["tara_b"], given, optimizer=adamw(falling), steps=200, search=1)
    expected = directly(LINEAR["tara_b"], given)
    np.testing.assert_allclose(found.phis[LAYER], expected, atol=0.02)
    assert found.history.objective.shape == (1, 200)
    exact = solve(LINEAR["tara_b"], given, ridge=1e-12).history.losses[0, 1].sum()
    assert exact <= found.history.objective[0, -1] * 2 <= 1.01 * exact + 1e-9


@pytest.mark.parametrize(
    "name",
    [
        "tara_a",
        *(pytest.param(name, marks=THOROUGH) for name in LINEAR if name != "tara_a"),
    ],
)
def test_one_adapter_comes_back(name):
    """Calibrated directions aside, phi is 1 then, and stays 1 where it was 1."""
    given = problem(ranks=(3,))
    start = {"initial": 1.0}
    learned = {
        "tara_a": jm.tara_a(**start),
        "tara_b": jm.tara_b(**start),
        "adamerging": jm.adamerging(clamp=False, **start),
    }.get(name, LINEAR[name])
    update = jm.dense(jm.task_updates(given[1], 0)[LAYER])
    exact = 1e-4 if name == "calibrated" else 1e-9
    for method, near in ((learned, exact), (LINEAR[name], 1e-4)):
        found = solve(method, given)
        np.testing.assert_allclose(jm.dense(found.updates[LAYER]), update, atol=near)
        if name != "calibrated":
            np.testing.assert_allclose(found.phis[LAYER], 1, atol=near)
    if name != "calibrated":
        found = fit(learned, given, steps=2, optimizer=optax.sgd(1.0))
        np.testing.assert_allclose(found.phis[LAYER], 1, atol=1e-6)


@pytest.mark.parametrize("find", [solve, partial(fit, steps=6)])
def test_what_is_masked_does_not_count(find):
    given = problem()
    tasks, stacks, inputs, params = given
    noise = {t: np.where(v[..., None], x, 100.0) for t, (x, v) in inputs.items()}
    others = {t: (noise[t], visible) for t, (_, visible) in inputs.items()}
    found, expected = (
        find(LINEAR["tara_a"], (tasks, stacks, x, params)) for x in (others, inputs)
    )
    np.testing.assert_allclose(
        found.phis[LAYER], expected.phis[LAYER], rtol=1e-9, atol=1e-12
    )


def test_a_task_that_is_absent_and_directions_without_effect_stay_at_the_start():
    rng = np.random.default_rng(1)
    b, a = rng.normal(size=(M, 2)), rng.normal(size=(2, N))
    pairs = [(b * [1, 0], a), None, (rng.normal(size=(M, 1)), rng.normal(size=(1, N)))]
    given = problem(adapters=pairs)
    found = solve(LINEAR["adamerging"], given).phis[LAYER]
    assert found[1] == pytest.approx(0.3)
    found = solve(LINEAR["tara_a"], given).phis[LAYER]
    assert found[1] == pytest.approx(0.4)
    assert np.isfinite(found).all()


def test_what_has_no_closed_form_is_refused():
    given = problem()
    for learned in (jm.adamerging(), jm.compose(jm.tara_a(), jm.svc)):
        with pytest.raises(ValueError, match="not linear in its coefficients"):
            solve(learned, given)
    tasks, stacks, inputs, params = given
    with pytest.raises(ValueError, match="elsewhere: lies in no block"):
        solve(jm.tara_a(), (tasks, {"elsewhere": stacks[LAYER]}, inputs, params))
    with pytest.raises(ValueError, match="of that name; nearest: dense"):
        solve(jm.tara_a(), (tasks, {"only.dens": stacks[LAYER]}, inputs, params))
