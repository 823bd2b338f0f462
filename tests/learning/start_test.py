"""Where a fit begins: laws of `search_start`, and fits from what it found."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit_problem import (
    LEARNED,
    METHODS,
    PARAMS,
    TASKS,
    Model,
    make_batches,
    make_losses,
    make_stacks,
    run,
)

import jaxmerge as jm
from jaxmerge.learning.start import SCALES, search_scale

BATCHES = list(itertools.islice(make_batches(), 2))


def search(method, losses=None, **options):
    given = {"params": PARAMS, "batches": BATCHES, "losses": losses or make_losses()}
    return jm.search_start(METHODS[method], TASKS, make_stacks(), **given | options)


def quadratic(best):
    """A loss that is least where the merge is ``best`` times task arithmetic."""
    whole = {m: jm.dense(jm.concat(stack)) for m, stack in make_stacks().items()}

    def losses(params, updates, batch):
        off = sum(
            jnp.sum((jm.dense(updates[m]) - best * whole[m]) ** 2) for m in updates
        )
        return dict.fromkeys(batch, off)

    return losses


@pytest.mark.parametrize("best", [0.123, 0.4, 0.95])
@pytest.mark.parametrize("method", LEARNED)
def test_the_best_scale_is_found(method, best):
    start = search(method, quadratic(best))
    assert start.scale == pytest.approx(best, rel=0.1)
    assert start.tried[start.scale] == min(start.tried.values())
    for module, phi in start.phis.items():
        np.testing.assert_allclose(phi, start.scale, rtol=1e-6, err_msg=module)


@pytest.mark.parametrize("method", LEARNED)
def test_every_method_is_tried_as_task_arithmetic(method):
    start = search(method, scales=(0.2, 0.7), refinements=0)
    losses = make_losses()
    for scale, objective in start.tried.items():
        updates = {
            m: jm.scale(jm.concat(s), by=scale) for m, s in make_stacks().items()
        }
        found = [losses(PARAMS, updates, batch) for batch in BATCHES]
        expected = [
            jm.smooth_tchebycheff(jnp.stack([each[task] for task in TASKS]))
            for each in found
        ]
        assert objective == pytest.approx(float(np.mean(expected)), rel=1e-5)


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("teacher", [False, True])
def test_it_is_the_best_of_all_scales_on_all_batches_or_beside_it(method, teacher):
    """And costs a third of what they cost."""
    calls, of_model = [], jax.jit(make_losses())
    if teacher:
        own = {t: jm.task_updates(make_stacks(), i) for i, t in enumerate(TASKS)}
        answers = (lambda _, features: features, dict.fromkeys(TASKS))
        of_model = jax.jit(jm.distillation(Model().apply, *answers, teachers=own))

    def losses(params, updates, batch):
        jax.debug.callback(lambda: calls.append(1))
        return of_model(params, updates, batch)

    batches = list(itertools.islice(make_batches(), 8))
    start = search(method, losses, batches=batches)
    jax.effects_barrier()
    assert len(calls) == 2 * len(start.glanced) + 8 * len(start.tried) <= 60
    # every scale on every batch
    whole = {m: jm.concat(stack) for m, stack in make_stacks().items()}
    grid = {}
    for scale in SCALES:
        updates = {m: jm.scale(update, by=scale) for m, update in whole.items()}
        found = [of_model(PARAMS, updates, batch) for batch in batches]
        each = [jnp.stack([one[t] for t in TASKS]) for one in found]
        grid[scale] = float(np.mean([jm.smooth_tchebycheff(x) for x in each]))
    best = min(grid, key=grid.__getitem__)
    steps = np.interp(np.log([start.scale, best]), np.log(SCALES), range(len(SCALES)))
    assert abs(steps[0] - steps[1]) <= 1
    assert start.tried[start.scale] <= grid[best] + 1e-6


def test_a_valley_that_the_first_batches_do_not_see_is_found():
    """They are least at 0.1, all of them together at 0.8."""
    batches = [*[0.1] * 2, *[1.0] * 6]
    found = search_scale(lambda scale, best: (scale - best) ** 2, batches)
    assert min(found.glanced, key=found.glanced.__getitem__) == 0.1
    assert found.scale == pytest.approx(np.mean(batches), rel=1e-3)


def test_more_refinements_are_never_worse():
    values = [
        min(search("tara_a", refinements=count).tried.values()) for count in range(4)
    ]
    assert values == sorted(values, reverse=True)


def test_the_end_of_the_scales_may_be_the_best():
    assert search("tara_b", quadratic(5.0), scales=(0.1, 0.3)).scale == 0.3
    assert search("tara_b", quadratic(0.2), scales=(0.3,)).tried.keys() == {0.3}


def test_shared_coefficients_are_those_of_one_module():
    start = search("adamerging", shared=True)
    assert {phi.shape for phi in start.phis.values()} == {(len(TASKS),)}
    assert start.scale == search("adamerging").scale


def test_scales_that_are_not_finite_are_passed_over():
    def change(task, loss, updates, inputs):
        size = jnp.abs(jm.dense(updates["out"])).max()
        return jnp.where(size > threshold, jnp.inf, loss)

    whole = jnp.abs(jm.dense(jm.concat(make_stacks()["out"]))).max()
    threshold = 0.5 * whole
    start = search("tara_a", make_losses(change=change))
    assert start.scale <= 0.5
    assert not np.isfinite(start.glanced[1.5])
    threshold = -1.0
    with pytest.raises(ValueError, match="finite for no scale; look for adapters"):
        search("tara_a", make_losses(change=change))


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match="no batch was given"):
        search("tara_a", batches=[])


@pytest.mark.parametrize("method", LEARNED)
def test_a_fit_begins_with_what_was_found(method):
    start = search(method, batches=BATCHES[:1])
    fitted = run(method, steps=1, start=start.phis)
    expected = start.tried[start.scale]
    assert float(fitted.history.objective[0]) == pytest.approx(expected, rel=1e-5)


def test_a_start_of_other_modules_or_shapes_is_refused():
    phis = search("tara_a").phis
    with pytest.raises(ValueError, match="hidden"):
        run("tara_a", steps=1, start={"out": phis["out"]})
    with pytest.raises(ValueError, match="hidden"):
        run("tara_a", steps=1, start=phis | {"hidden": phis["hidden"][1:]})


def test_a_fit_from_another_start_is_another_fit(tmp_path):
    phis = search("tara_a").phis
    run("tara_a", steps=4, checkpoint=tmp_path / "fit", start=phis)
    with pytest.raises(ValueError, match="another"):
        run("tara_a", steps=8, checkpoint=tmp_path / "fit")
