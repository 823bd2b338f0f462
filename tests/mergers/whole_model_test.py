"""Mergers of whole models: module by module, calibrated, trimmed together, learned."""

from functools import partial
from zlib import crc32

import fit_problem
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import METHODS, distance, random_stack, statistics
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.mergers.balance import BALANCED
from jaxmerge.mergers.pico import PICO

NAMES = ["concat", "core/ties", "knots/dare", "regmean"]
WEIGHTS = jnp.array([1.0, 0.5])
CALIBRATIONS = {
    "pico": ((PICO,), jm.pico),
    "balanced": ((BALANCED,), jm.balanced),
    "balanced(pico)": ((PICO, BALANCED), lambda merger: jm.balanced(jm.pico(merger))),
}
POSTS = {
    "scale": partial(jm.scale, by=0.5),
    "svc": jm.svc,
    "truncate": partial(jm.truncate, rank=2),
    "isotropize": jm.isotropize,
}


@pytest.fixture(scope="module")
def stacks():
    return {name: random_stack((3, 2), 9, 8, seed=i) for i, name in enumerate("qk")}


@pytest.fixture(scope="module")
def more_stacks(stacks):
    """With a module of another shape, which a task does not adapt."""
    return stacks | {"up": random_stack((0, 2), 7, 8, seed=2)}


def inputs_of(name, stacks) -> dict:
    """What a call of a merger of whole models needs beside the adapters."""
    method, inputs = METHODS[name], {"weights": WEIGHTS}
    if method.random:
        inputs["key"] = jax.random.key(3)
    if method.data:
        inputs["stats"] = {
            module: statistics(stack) for module, stack in stacks.items()
        }
    return inputs


def assert_same(left, right, tolerance=1e-12):
    assert list(left) == list(right)
    for name, update in left.items():
        assert distance(jm.dense(update), jm.dense(right[name])) < tolerance, name


@pytest.mark.parametrize("name", NAMES)
def test_each_module_is_merged_by_itself(more_stacks, name):
    """With its own statistics and its own key."""
    merger, inputs = METHODS[name].merger, inputs_of(name, more_stacks)
    merged = jm.each_module(merger)(more_stacks, **inputs)
    assert list(merged) == list(more_stacks)
    for module, stack in more_stacks.items():
        of_module = {"weights": WEIGHTS}
        if "key" in inputs:
            of_module["key"] = jax.random.fold_in(inputs["key"], crc32(module.encode()))
        if "stats" in inputs:
            of_module["stats"] = inputs["stats"][module]
        alone = jax.jit(merger)(stack, **of_module)
        assert_same({module: merged[module]}, {module: alone})


@pytest.mark.parametrize(("name", "kind"), in_turn(NAMES, [*CALIBRATIONS]))
def test_a_calibrated_model_is_one_of_calibrated_mergers(stacks, name, kind):
    merger, inputs = METHODS[name].merger, inputs_of(name, stacks)
    calibrations, of_merger = CALIBRATIONS[kind]
    model = jm.calibrated_model(jm.each_module(merger), *calibrations)
    one_by_one = jm.each_module(of_merger(merger))
    assert_same(model(stacks, **inputs), one_by_one(stacks, **inputs), 1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "name"), in_turn([*POSTS], ["concat", "full/ties", "knots/dare"], quick=4)
)
def test_posts_lift_to_whole_models(stacks, name, kind):
    merger, post, inputs = METHODS[name].merger, POSTS[kind], inputs_of(name, stacks)
    model = jm.calibrated_model(jm.each_module(merger), jm.Calibration(after=post))
    one_by_one = jm.each_module(jm.then(merger, post))
    assert_same(model(stacks, **inputs), one_by_one(stacks, **inputs), 1e-9)


def test_without_calibrations_nothing_changes(stacks):
    merge = jm.each_module(jm.concat)
    assert_same(jm.calibrated_model(merge)(stacks), merge(stacks), 1e-15)


@pytest.mark.thorough
def test_calibrations_surround_any_merger_of_whole_models(more_stacks):
    """Here one whose modules share a threshold: they meet calibrated."""
    trim = jm.trim_whole_model(jm.elect, jm.core, density=0.3)
    merged = trim({name: jm.calibrate(stack) for name, stack in more_stacks.items()})
    restored = {
        name: jm.restore_norm(update, stack=more_stacks[name])
        for name, update in merged.items()
    }
    assert_same(jm.calibrated_model(trim, PICO)(more_stacks), restored, 1e-9)


@pytest.mark.thorough
def test_options_of_mapping_and_inputs_of_a_call_reach_everyone(stacks):
    merge = jm.calibrated_model(
        jm.each_module(METHODS["knots/dare"].merger),
        PICO,
        jm.Calibration(after=jm.scale),
    )
    merge = partial(merge, key=jax.random.key(3), weights=WEIGHTS, extras=["by"])
    run = partial(merge, stacks, by=0.5)
    plain = run()
    assert_same(run(chunk=1), plain)
    assert_same(run(mesh=jm.module_mesh()), plain)
    twice = merge(stacks, by=1.0)
    assert_same(twice, {name: jm.scale(x, by=2.0) for name, x in plain.items()})


@pytest.mark.parametrize(
    ("space", "density"),
    in_turn(["full", "core", "knots", "knots_unscaled"], [0.2, 0.5, 1.0]),
)
def test_trimming_a_model_of_one_module_is_trimming_it(space, density):
    space, stack = getattr(jm, space), random_stack((3, 3), 9, 8)
    whole = jm.trim_whole_model(jm.elect, space, density=density)
    alone = jm.in_space(space, jm.trim(jm.elect, density=density))
    merged = whole({"q": stack}, weights=WEIGHTS)["q"]
    assert distance(jm.dense(merged), jm.dense(alone(stack, weights=WEIGHTS))) < 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize("method", fit_problem.METHODS)
def test_applied_coefficients_give_the_updates_of_their_fit(method):
    fitted = fit_problem.run(method, steps=2, steps_per_call=2)
    merge = jm.apply_learned(fit_problem.METHODS[method], fitted.phis)
    merged = merge(fit_problem.make_stacks())
    assert list(merged) == list(fit_problem.SIZES)
    for name, update in merged.items():
        assert distance(jm.dense(update), jm.dense(fitted.updates[name])) < 1e-6


def test_coefficients_that_all_modules_share():
    stacks, learned = fit_problem.make_stacks(), jm.adamerging()
    phi = jnp.array([0.2, 0.3, 0.5], jnp.float32)
    shared = jm.apply_learned(learned, {"every module": phi})
    same = dict.fromkeys(stacks, phi)
    assert_same(shared(stacks), jm.apply_learned(learned, same)(stacks))


def test_coefficients_of_other_adapters_are_refused():
    stacks, learned = fit_problem.make_stacks(), jm.adamerging()
    with pytest.raises(ValueError, match="out: in the adapters or the coefficients"):
        jm.apply_learned(learned, {"hidden": np.ones(3)})(stacks)
    two = dict.fromkeys(stacks, np.ones(2))
    with pytest.raises(ValueError, match=r"coefficients \(2,\), expected \(3,\)"):
        jm.apply_learned(learned, two)(stacks)
