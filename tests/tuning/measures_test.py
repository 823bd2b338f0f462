"""Losses of answers against those that `jaxmerge.fit` takes, on the same answers."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.tuning.measures import loss_of_answers

SCALE = 3.0


def answers(params, x):
    return x


def logits(head, features):
    return features


@pytest.mark.parametrize(
    ("score", "dtype"),
    in_turn(
        ["distillation", "features", "entropy", "information"],
        [np.float32, np.float64],
    ),
)
def test_a_loss_of_answers_is_that_of_learn(score, dtype):
    rng = np.random.default_rng(0)
    own, merged = (jnp.asarray(rng.normal(size=(9, 4)), dtype) for _ in range(2))
    model = (answers, logits, {"t": None})
    scaled = {"logit_scale": SCALE}
    losses = {
        "distillation": jm.distillation(*model, temperature=2.0, **scaled),
        "features": jm.feature_distillation(answers),
        "entropy": jm.entropies(*model, **scaled),
        "information": jm.information(*model, **scaled),
    }[score]
    taught = score in ("distillation", "features")
    batch = jm.Taught(merged, own) if taught else merged
    expected = losses(None, {}, {"t": batch})["t"]
    found = loss_of_answers(score, temperature=2.0, **scaled)(own, merged)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
