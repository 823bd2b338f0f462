"""Very small and very large adapters are merged as ordinary ones are, or refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.magnitudes import at_ordinary_scale, weighted_sum
from jaxmerge.mergers.whole_model import each_module
from jaxmerge.types import LowRank

FAR = [(-66, -66), (-120, 10), (60, 60), (-100, 100)]  # powers of two of all B, all A


def stacks(b=0, a=0):
    draw = np.random.default_rng(0)
    shapes = {"q": (6, 5), "o": (5, 7)}
    pairs = {
        name: [(draw.normal(size=(m, 2)), draw.normal(size=(2, n))) for _ in range(3)]
        for name, (m, n) in shapes.items()
    }
    return {
        name: jm.stack_adapters([(np.ldexp(x, b), np.ldexp(y, a)) for x, y in found])
        for name, found in pairs.items()
    }


def exact(update):
    """An update in float64, as a matrix."""
    if isinstance(update, LowRank):
        return np.asarray(update.b, np.float64) @ np.asarray(update.a, np.float64)
    return np.asarray(update, np.float64)


def close(found, expected, power):
    for module, update in expected.items():
        wanted, got = exact(update), np.ldexp(exact(found[module]), -power)
        np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.thorough
@pytest.mark.parametrize(
    "text",
    [
        "concat|scale(0.3)",
        "total|core",
        "elect|trim_whole_model(density=0.5)|knots|pico|svc",
        "tsv_m|isotropize",
        "elect|trim(density=0.5)|core|truncate(rank=2)",
        "robust_merge|svc",
        "balanced",
    ],
)
def test_a_pipeline_multiplies_with_its_adapters(text):
    pipeline = jm.parse(text if text != "balanced" else "concat|balanced")
    ordinary = pipeline.run(stacks())
    for b, a in FAR:
        close(pipeline.run(stacks(b, a)), ordinary, b + a)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("post", "b"),
    in_turn([jm.svc, jm.isotropize, partial(jm.truncate, rank=2)], [-66, 60]),
)
def test_pico_and_posts_do_by_themselves(post, b):
    merge = jm.then(jm.pico(jm.concat), post)
    for module, stack in stacks().items():
        near, far = merge(stack), merge(stacks(b, b)[module])
        close({module: far}, {module: near}, 2 * b)


def test_norms_hold_what_float32_holds():
    far = stacks(-80, -20)["q"]
    assert np.allclose(
        np.ldexp(np.float64(jm.task_norms(far)), 100), jm.task_norms(stacks()["q"])
    )
    updates = jm.concat(far), jm.dense(jm.concat(far))
    expected = float(jm.norm(jm.concat(stacks()["q"])))
    for update in updates:
        assert np.ldexp(float(jm.norm(update)), 100) == pytest.approx(expected)


def test_svc_hears_a_tiny_adapter_in_its_own_units():
    """A response is relative, so that of one part of an update in itself is 1."""
    one = ([[1.0], [0.0]], [[1.0, 0.0]])
    tiny = ([[0.0], [2.0**-60]], [[0.0, 2.0**-20]])
    stack = jm.stack_adapters([one, tiny])
    assert np.array_equal(
        jm.dense(jm.svc(jm.concat(stack), stack=stack)), [[1, 0], [0, 0]]
    )


def test_ordinary_adapters_are_not_touched():
    seen = []

    def merger(given, **extra):
        seen.append((given, extra))
        return {module: jm.concat(stack) for module, stack in given.items()}

    given, weights = stacks(-9, 8), np.array([1.0, -2.0, 0.5])
    merge = at_ordinary_scale(merger, together=False)
    merge(given, weights=weights, factor=0.3)
    assert all(seen[0][0][module] is given[module] for module in given)
    assert seen[0][1] == {"weights": weights, "factor": 0.3}
    traced = jax.jit(at_ordinary_scale(each_module(jm.concat), together=False))
    for module, update in traced(given).items():
        assert np.array_equal(update.b, jm.concat(given[module]).b)


def test_tiny_weights_and_scales_keep_their_digits():
    given = stacks()
    pipeline = jm.parse("concat|scale(1e-30)")
    merged = pipeline.run(given, weights=[1e-12, 2e-12, -1e-12])
    expected = jm.parse("concat").run(given, weights=[1.0, 2.0, -1.0])
    for module, update in expected.items():
        wanted, got = exact(update), exact(merged[module]) * 1e42
        np.testing.assert_allclose(got, wanted, atol=1e-6 * np.abs(wanted).max())


def test_what_float32_cannot_hold_is_refused():
    with pytest.raises(jm.Refusal, match=r"module 'q': the merge is too small"):
        jm.parse("total|full").run(stacks(-70, -70))
    for text in ("total|full", "concat", "total|core"):
        with pytest.raises(jm.PipelineError, match="infinite in 2 modules"):
            jm.parse(text).run(stacks(70, 70))


def test_biases_of_any_magnitude_are_added():
    rows = jnp.asarray(np.float32([[3e-39, 1.0e-38], [5e-39, -2e-39]]))
    total = np.asarray(weighted_sum(np.array([1.0, 0.5]), rows), np.float64)
    expected = np.array([1.0, 0.5]) @ np.asarray(rows, np.float64)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
