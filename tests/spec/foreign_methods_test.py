"""Methods of mergekit as pipelines, against the formulas of mergekit 0.1.5."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from documented import DOCS

import jaxmerge as jm
from jaxmerge.spec.foreign_methods import _DIFFERENT, _METHODS, translated

DELTAS = np.random.default_rng(0).normal(size=(3, 6, 10))


def mergekit(method, weights, densities, *, normalize, by=1.0):
    """Its linear and generalized task arithmetic, on the updates of one matrix."""
    deltas = DELTAS.copy()
    if method == "ties":
        for delta, density in zip(deltas, densities, strict=True):
            kept = int(density * delta.size)
            delta.flat[np.argsort(-np.abs(delta), axis=None)[kept:]] = 0
    weights = np.reshape(weights, (-1, 1, 1))
    deltas = deltas * weights
    mask = np.ones_like(deltas)
    if method == "ties":
        mask = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1, -1)
    divisor = (weights * mask).sum(0) if normalize else 1
    return by * (deltas * mask).sum(0) / np.where(divisor == 0, 1, divisor)


def ours(found):
    stack = jm.stack_adapters([(delta, np.eye(10)) for delta in DELTAS])
    merged = jm.parse(found.pipeline).run(
        {"a": stack}, weights=found.weights, densities=found.densities
    )
    return jm.dense(merged["a"])


CASES = [
    ("linear", [1.0, 2.0, 0.5], None, {}),
    ("task_arithmetic", [1.0, -2.0, 0.5], None, {"lambda": 0.3}),
    ("task_arithmetic", [1.0, 2.0, 0.5], None, {"normalize": True, "int8_mask": True}),
    ("ties", [0.5, 0.5, 0.5], [0.3, 0.3, 0.3], {"lambda": 0.7}),
    ("ties", [0.5, 0.5, 0.5], [0.3, 0.55, 1.0], {}),
    ("ties", [1.0, 2.0, -0.5], [0.3, 0.55, 1.0], {"normalize": False}),
]


@pytest.mark.parametrize(("method", "weights", "densities", "shared"), CASES)
def test_what_is_translated_is_the_same_merge(method, weights, densities, shared):
    default = method != "task_arithmetic"
    expected = mergekit(
        *(method, weights, densities),
        normalize=shared.get("normalize", default),
        by=shared.get("lambda", 1.0),
    )
    found = ours(translated(method, weights, densities, shared))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


REFUSED = [
    ("linear", [1.0, 1.0], None, {"normalize": False}, "scales the base model too"),
    ("linear", [1.0, -1.0], None, {}, "a sum other than 0"),
    ("linear", [[0.0, 1.0], 1.0], None, {}, "not plain numbers"),
    ("ties", [1.0, 0.5], [0.2, 0.2], {}, "divides by their number"),
    ("ties", [1.0, 1.0], None, {}, "needs parameters.density"),
    ("ties", [1.0, 1.0], [0.2, 0.2], {"lamda": 1}, "did you mean 'lambda'?"),
    ("ties", [1.0, 1.0], [0.2, 0.2], {"normalize": 1}, "expected true or false"),
    ("task_arithmetic", [1.0], None, {"lambda": [1, 2]}, "expected one number"),
    ("task_arithmetic", [1.0], [0.2], {}, "has no density"),
    ("ties_svd", [1.0, 0.5], [0.2, 0.2], {}, "PEFT elects signs without the weights"),
    ("svd", [1.0], None, {"svd_rank": "4"}, "expected a whole number"),
    ("slerp", [1.0], None, {}, "it is not offered here"),
    ("tis", [1.0], None, {}, "did you mean 'ties'?"),
    ("knots_ties", [1.0], None, {}, "are given as pipeline"),
]


@pytest.mark.parametrize(("method", "weights", "densities", "shared", "said"), REFUSED)
def test_what_is_another_merge_is_refused(method, weights, densities, shared, said):
    with pytest.raises(jm.Refusal, match=re.escape(said)):
        translated(method, weights, densities, shared)


@pytest.mark.parametrize("method", _DIFFERENT)
def test_what_differs_comes_with_the_pipeline_that_is_meant(method):
    with pytest.raises(jm.Refusal) as error:
        translated(method, [1.0, 1.0], [0.5, 0.5], {})
    pipeline = re.search(r"\w+\|\w+\(density=\.\.\)\|full", str(error.value))
    assert jm.parse(pipeline.group().replace("..", "0.5"))


def test_mergekit_rescales_what_dare_keeps_and_jaxmerge_does_not():
    """Why DARE and DELLA of mergekit are named as different."""
    key = jax.random.key(0)
    thin = jm.dare(jm.total, density=0.5)(jnp.asarray(DELTAS[:1]), key=key)
    kept = np.asarray(thin) != 0
    l1 = np.abs(DELTAS[0]).sum() / np.abs(DELTAS[0][kept]).sum()
    ratio = np.asarray(thin)[kept] / DELTAS[0][kept]
    assert ratio == pytest.approx(2.0, abs=1e-5)
    assert abs(l1 - 2.0) > 1e-2


def test_the_page_names_every_method():
    page = (DOCS / "from_other_tools.md").read_text()
    rows = [line.split(" | ")[0] for line in page.splitlines() if line[:3] == "| `"]
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert {*_METHODS, *_DIFFERENT} <= named
