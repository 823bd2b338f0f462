"""Fitting: what the first step is, its gradient, resuming, fronts, failures."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmerge as jm
from jaxmerge.fitting.step import Problem, gradient, gradient_by_task, merge
from jaxmerge.models import with_updates

TASKS = ("first", "second", "third")
SIZES = {"hidden": (7, 5), "out": (6, 7)}  # module -> (m, n)
METHODS = {
    "tara_a": jm.tara_a(),
    "tara_b": jm.tara_b(),
    "adamerging": jm.adamerging(clamp=False, initial=0.4),
    "tara_b on calibrated": jm.compose(jm.tara_b(), before=jm.calibrate),
    "tara_a then svc": jm.compose(jm.tara_a(), jm.svc),
}


class Model(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.Dense(7, name="hidden", dtype=self.dtype)(inputs)
        return nn.Dense(6, name="out", dtype=self.dtype)(jnp.tanh(hidden))


def draw(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def make_stacks(ranks=(2, 3, 1), dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        name: jm.stack_adapters(
            [(rng.normal(size=(m, r)), rng.normal(size=(r, n))) for r in ranks],
            dtype=dtype,
        )
        for name, (m, n) in SIZES.items()
    }


PARAMS = Model().init(jax.random.key(0), jnp.zeros((1, 5), jnp.float32))


def make_losses(merged=False, dtype=jnp.float32, change=None):
    """Entropies; ``change(task, loss, updates, batch)`` may spoil one of them."""
    heads = {task: draw(10 + t, 6, 4) for t, task in enumerate(TASKS)}
    apply = Model(dtype=dtype).apply

    def losses(params, updates, batch):
        found = {}
        for task, inputs in batch.items():
            features = with_updates(apply, updates, merged=merged)(params, inputs)
            logits = jnp.matmul(features.astype(jnp.float32), heads[task])
            found[task] = jm.entropy(logits)
            if change is not None:
                found[task] = change(task, found[task], updates, inputs)
        return found

    return losses


def make_batches(seed=0):
    """A new batch for every step; the tasks' batches differ in size."""
    for step in itertools.count():
        yield {
            t: draw(100 * seed + 10 * step + i, 4 + i, 5) for i, t in enumerate(TASKS)
        }


def adamw(rate):
    def with_promotion(function):
        def call(*args, **kwargs):
            with jax.numpy_dtype_promotion("standard"):
                return function(*args, **kwargs)

        return call

    inner = optax.adamw(rate)
    return optax.GradientTransformation(inner.init, with_promotion(inner.update))


def run(method="tara_a", steps=12, **options):
    options = {"params": PARAMS, "steps_per_call": 4} | options
    return jm.fit(
        METHODS[method],
        TASKS,
        make_stacks(),
        make_losses(),
        make_batches(),
        adamw(0.05),
        steps=steps,
        **options,
    )


def assert_trees(left, right, tolerance=0.0):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), left, right
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_objective_falls(method):
    batch = next(make_batches())
    fitted = jm.fit(
        METHODS[method],
        TASKS,
        make_stacks(),
        make_losses(),
        itertools.repeat(batch),
        adamw(0.02),
        steps=20,
        params=PARAMS,
    )
    objective = fitted.history.objective
    assert objective.shape == (20,)
    assert fitted.history.losses.shape == (20, 3)
    assert objective[-1] < objective[0] - 0.01
    assert all(np.all(np.isfinite(phi)) for phi in fitted.phis.values())


@pytest.mark.parametrize("method", ["tara_a", "tara_b", "adamerging"])
def test_step_0_is_task_arithmetic(method):
    fitted = run(method, steps=1)
    stacks, losses, batch = make_stacks(), make_losses(), next(make_batches())
    updates = {m: jm.scale(jm.concat(s), by=0.4) for m, s in stacks.items()}
    found = losses(PARAMS, updates, batch)
    expected = [found[task] for task in TASKS]
    np.testing.assert_allclose(fitted.history.losses[0], expected, rtol=1e-5)


def test_gradient_in_phi_is_b_g_a():
    """``d f / d phi_k = b_k^T G a_k`` with G the gradient of the dense update."""
    stacks, batch = make_stacks(), next(make_batches())
    method, losses = METHODS["tara_a"], make_losses()
    bases = {m: method.prepare(s) for m, s in stacks.items()}
    phis = {m: draw(5, 6) for m in bases}
    problem = Problem(method, TASKS, losses, jm.smooth_tchebycheff)
    _, found = gradient(problem, phis, bases, PARAMS, batch, None)

    def objective(dense):
        found = losses(PARAMS, dense, batch)
        return jm.smooth_tchebycheff(jnp.stack([found[task] for task in TASKS]))

    full = {m: jm.dense(u) for m, u in merge(method, phis, bases).items()}
    for module, g in jax.grad(objective)(full).items():
        b, a = bases[module].b, bases[module].a
        by_hand = jnp.einsum("mk,mn,kn->k", b, g, a)
        np.testing.assert_allclose(found[module], by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("merged", [False, True])
def test_task_by_task_gives_the_same_gradient(method, merged):
    learned = METHODS[method]
    bases = {m: learned.prepare(s) for m, s in make_stacks().items()}
    phis = {m: learned.init(basis) for m, basis in bases.items()}
    problem = Problem(
        learned,
        TASKS,
        make_losses(merged),
        partial(jm.smooth_tchebycheff, alpha=0.1, anchors=jnp.array([0.1, 0.5, 0.2])),
        penalty=lambda phis, _: 0.1 * sum(jnp.sum(p**2) for p in phis.values()),
    )
    rest = (phis, bases, PARAMS, next(make_batches()), jnp.array([0.5, 0.3, 0.2]))
    whole = jax.jit(partial(gradient, problem))(*rest)
    parts = jax.jit(partial(gradient_by_task, problem))(*rest)
    assert_trees(whole, parts, 2e-5)


def test_accumulation_fits_the_same():
    assert_trees(run().phis, run(accumulate=True).phis, 1e-3)


def test_tasks_in_another_order():
    """Permuting adapters, losses and preference together permutes phi and no more."""
    order = [2, 0, 1]
    preference = jnp.array([0.5, 0.2, 0.3])
    stacks, losses = make_stacks(), make_losses()
    there = run("tara_b", preference=preference)
    moved = {
        m: s.replace(
            a=s.a[jnp.array(order)],
            b=s.b[jnp.array(order)],
            ranks=tuple(s.ranks[t] for t in order),
        )
        for m, s in stacks.items()
    }
    back = jm.fit(
        METHODS["tara_b"],
        [TASKS[t] for t in order],
        moved,
        losses,
        make_batches(),
        adamw(0.05),
        steps=12,
        params=PARAMS,
        preference=preference[jnp.array(order)],
    )
    for module in SIZES:
        np.testing.assert_allclose(
            jm.dense(there.updates[module]), jm.dense(back.updates[module]), atol=2e-3
        )


def test_a_front_is_its_members():
    preferences = jnp.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    front = run(preference=preferences)
    assert front.history.losses.shape == (2, 12, 3)
    for index, preference in enumerate(preferences):
        alone = run(preference=preference)
        of_front = jax.tree.map(lambda x, i=index: x[i], (front.phis, front.updates))
        assert_trees(of_front, (alone.phis, alone.updates), 1e-3)
        np.testing.assert_allclose(
            front.history.objective[index], alone.history.objective, rtol=1e-3
        )


def test_one_phi_for_all_modules():
    fitted = run("adamerging", shared=True)
    (phi,) = fitted.phis.values()
    assert phi.shape == (3,)
    for name, stack in make_stacks().items():
        expected = jm.dense(jm.task_arithmetic(stack, weights=phi))
        np.testing.assert_allclose(jm.dense(fitted.updates[name]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="share none"):
        jm.fit(
            jm.tara_a(),
            TASKS,
            make_stacks() | {"odd": make_stacks((1, 1, 1))["out"]},
            make_losses(),
            make_batches(),
            optax.sgd(0.1),
            steps=1,
            shared=True,
        )


def test_a_task_that_lacks_a_module():
    stacks = make_stacks()
    pair = (draw(1, 7, 2), draw(2, 2, 5))
    stacks["hidden"] = jm.stack_adapters([pair, None, pair])
    for method in ("tara_a", "tara_b", "adamerging"):
        fitted = jm.fit(
            METHODS[method],
            TASKS,
            stacks,
            make_losses(),
            make_batches(),
            adamw(0.05),
            steps=3,
            params=PARAMS,
        )
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(fitted.updates))


@pytest.mark.parametrize("steps_before", [4, 8])
def test_resuming_gives_the_same_bits(tmp_path, steps_before):
    preference = jnp.array([0.5, 0.3, 0.2])
    whole = run(preference=preference)
    run(preference=preference, steps=steps_before, checkpoint=tmp_path / "fit")
    resumed = run(preference=preference, checkpoint=tmp_path / "fit")
    assert_trees(whole, resumed)
    finished = run(preference=preference, checkpoint=tmp_path / "fit")
    assert_trees(whole, finished)


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    run(steps=4, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"another fit, its preference differ"):
        run(preference=jnp.array([0.5, 0.3, 0.2]), checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"another fit, its adapters differ"):
        run("tara_b", checkpoint=tmp_path)


KILLED = """
    import sys
    import jax
    jax.config.update("jax_enable_x64", True)
    sys.path.insert(0, sys.argv[2])
    from fit_test import run
    run(steps=400, steps_per_call=2, checkpoint=sys.argv[1],
        report=lambda progress: print(progress.step, flush=True))
"""


def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path):
    """Killed twice without warning, at a random moment, then finished."""
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "f"), here]
    rng = np.random.default_rng()
    reached = []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            reached.append(int(process.stdout.readline()))
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
    assert reached[1] > reached[0]
    options = {"steps": reached[1] + 6, "steps_per_call": 2}
    resumed = run(checkpoint=tmp_path / "f", **options)
    done = resumed.history.objective.shape[0]
    assert done >= reached[1]
    assert_trees(run(steps_per_call=2, steps=done), resumed)


def test_a_report_after_every_call():
    seen = []
    run(steps=10, report=seen.append)
    assert [progress.step for progress in seen] == [4, 8, 10]
    assert seen[-1].history.losses.shape == (2, 3)


def run_spoilt(change, **options):
    losses = make_losses(change=change)
    optimizer, options = optax.sgd(0.1), {"steps": 12, "params": PARAMS} | options
    return jm.fit(
        jm.tara_a(), TASKS, make_stacks(), losses, make_batches(), optimizer, **options
    )


def test_nan_names_step_and_task():
    sizes = [float(jnp.max(b["second"])) for b in itertools.islice(make_batches(), 12)]
    first = next(i for i, size in enumerate(sizes) if size > 2.2)

    def change(task, loss, updates, batch):
        spoils = (jnp.max(batch) > 2.2) & (task == "second")
        return loss / jnp.where(spoils, 0.0, 1.0)

    message = rf"step {first + 1}: the loss of second is not finite"
    with pytest.raises(FloatingPointError, match=message):
        run_spoilt(change)


@pytest.mark.parametrize("preference", [None, jnp.full((2, 3), 1 / 3)])
def test_a_gradient_that_is_nan_names_the_task(preference):
    def change(task, loss, updates, batch):
        if task != "third":
            return loss
        return loss + jnp.sqrt(0 * jnp.sum(updates["out"].b))  # an infinite slope at 0

    member = "" if preference is None else " for preference 0"
    message = f"step 1{member}: the gradient of third"
    with pytest.raises(FloatingPointError, match=message):
        run_spoilt(change, preference=preference)


def test_batches_that_end_early_or_lack_a_task():
    for batches, message in (
        (list(itertools.islice(make_batches(), 5)), "batches end after 5 of 12 steps"),
        (itertools.repeat({"first": draw(0, 4, 5)}), "no 'second' before step 10"),
    ):
        with pytest.raises(ValueError, match=message):
            jm.fit(
                jm.tara_a(),
                TASKS,
                make_stacks(),
                make_losses(),
                batches,
                optax.sgd(0.1),
                steps=12,
                params=PARAMS,
            )


def test_anchors_are_the_losses_of_single_adapters():
    stacks, losses = make_stacks(), make_losses()
    batches = list(itertools.islice(make_batches(), 2))
    find = partial(jm.single_adapter_losses, TASKS, stacks, losses, params=PARAMS)
    anchors = find(batches)
    for index, task in enumerate(TASKS):
        weights = jnp.eye(3, dtype=jnp.float32)[index]
        updates = {m: jm.task_arithmetic(s, weights=weights) for m, s in stacks.items()}
        found = [losses(PARAMS, updates, batch)[task] for batch in batches]
        np.testing.assert_allclose(anchors[index], np.mean(found), rtol=1e-5)
    with pytest.raises(ValueError, match="at least one batch"):
        find([])
    with pytest.raises(ValueError, match="3 adapters, but 1 tasks"):
        jm.single_adapter_losses(["first"], stacks, losses, batches, params=PARAMS)


def test_bfloat16_compute_with_float32_phi():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    batches = (
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), batch)
        for batch in make_batches()
    )
    fitted = jm.fit(
        jm.tara_b(),
        TASKS,
        make_stacks(),
        make_losses(dtype=jnp.bfloat16),
        batches,
        adamw(0.01),
        steps=4,
        params=half,
    )
    assert all(phi.dtype == jnp.float32 for phi in fitted.phis.values())
    whole = run("tara_b", steps=4)
    np.testing.assert_allclose(
        fitted.history.losses[0], whole.history.losses[0], rtol=0.05
    )


@pytest.mark.parametrize("merged", [False, True])
def test_null_space_compression_without_heads(merged):
    """NSC's losses fall, equal the formula, and leave out masked rows."""
    stacks, batch = make_stacks(), next(make_batches())
    batch = {task: x.at[-1].set(jnp.nan) for task, x in batch.items()}
    losses = jm.null_space_ratios(
        Model().apply,
        TASKS,
        stacks,
        modules=["hidden"],
        mask=lambda inputs: ~jnp.any(jnp.isnan(inputs), axis=-1),
        merged=merged,
    )
    found = losses(PARAMS, {}, batch)
    for index, (task, inputs) in enumerate(batch.items()):
        z, rank = np.asarray(inputs[:-1], np.float64), stacks["hidden"].ranks[index]
        q = np.linalg.qr(np.asarray(stacks["hidden"].a[index, :rank], np.float64).T)[0]
        ratio = np.linalg.norm(z - z @ q @ q.T, axis=1) / np.linalg.norm(z, axis=1)
        np.testing.assert_allclose(found[task], ratio.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="'other' has no adapters"):
        jm.null_space_ratios(Model().apply, TASKS, stacks, modules=["other"])


def test_null_space_compression_is_fitted():
    stacks = make_stacks()
    losses = jm.null_space_ratios(Model().apply, TASKS, stacks, modules=["out"])
    fitted = jm.fit(
        METHODS["adamerging"],
        TASKS,
        stacks,
        losses,
        itertools.repeat(next(make_batches())),
        adamw(0.02),
        steps=20,
        params=PARAMS,
        scalarise=jm.linear_scalarisation,
    )
    assert fitted.history.objective[-1] < fitted.history.objective[0] - 1e-3
