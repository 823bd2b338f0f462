"""Objectives at tokens, against the same with all logits in memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.learning.token_logits import log_probabilities, over_tokens

TEXTS, TOKENS, WIDTH, WORDS = 3, 7, 4, 11


def problem(dtype=np.float64, seed=0):
    """Hidden states of a teacher and a student, a head, and which tokens count."""
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(size=(2, TEXTS, TOKENS, WIDTH)).astype(dtype)
    mask = np.arange(TOKENS)[None, :] < np.array([[2], [7], [0]])
    head = rng.normal(size=(WORDS, WIDTH)).astype(dtype)
    return *map(jnp.asarray, (teacher, student, head)), jnp.asarray(mask)


@pytest.mark.parametrize(
    "dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.thorough)]
)
def test_chunks_change_nothing(dtype):
    teacher, student, head, mask = problem(dtype)
    tolerance = {"rtol": 0, "atol": 1e-6 if dtype == np.float32 else 1e-14}

    def whole(student):
        pair = (x @ head.T for x in (teacher, student))
        return jm.divergence(*pair, temperature=1.7, mask=mask)

    expected = jax.jit(jax.value_and_grad(whole))(student)
    for chunk in (4, 256):
        options = {"temperature": 1.7, "mask": mask, "chunk": chunk}
        chunked = partial(jm.token_divergence, teacher, head=head, **options)
        found = jax.jit(jax.value_and_grad(lambda x, f=chunked: f(x)))(student)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            np.testing.assert_allclose(one, other, **tolerance)
    logits = (student @ head.T)[mask]
    found = jm.token_entropy(student, head, mask=mask, chunk=4)
    np.testing.assert_allclose(found, jm.entropy(logits, epsilon=0), **tolerance)
    ids = jnp.where(mask, jnp.argmax(student @ head.T, axis=-1), -1).at[0, 0].set(5)
    nats, likeliest = jm.token_nats(student, ids, head, chunk=4)
    log_p = jax.nn.log_softmax(student @ head.T)
    own = jnp.take_along_axis(log_p, jnp.maximum(ids, 0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nats, jnp.where(mask, -own, 0), **tolerance)
    right = np.asarray(jnp.argmax(log_p, axis=-1) == ids) | ~np.asarray(mask)
    np.testing.assert_array_equal(likeliest, right)


def test_what_equals_its_teacher_has_no_loss_and_no_gradient():
    teacher, _, head, mask = problem()
    value, change = jax.jit(
        jax.value_and_grad(
            lambda x: jm.token_divergence(teacher, x, head, mask=mask, chunk=4)
        )
    )(teacher)
    assert value == 0
    np.testing.assert_allclose(change, 0, atol=1e-15)


def test_tokens_that_do_not_count_change_nothing():
    teacher, student, head, mask = problem()
    other = jnp.where(mask[..., None], student, 100.0)

    def found(x):
        return jm.token_divergence(teacher, x, head, mask=mask, chunk=2)

    for one, same in zip(
        jax.value_and_grad(found)(student),
        jax.value_and_grad(found)(other),
        strict=True,
    ):
        np.testing.assert_array_equal(one, same)
    assert not np.asarray(jax.grad(found)(student))[~np.asarray(mask)].any()
    nothing = jnp.zeros_like(mask)
    assert jm.token_divergence(teacher, student, head, mask=nothing) == 0
    assert jm.token_entropy(student, head, mask=nothing) == 0


def test_it_runs_under_vmap_and_without_a_mask():
    teacher, student, head, _ = problem()
    run = partial(jm.token_divergence, head=head, chunk=2)
    each = [run(t, s) for t, s in zip(teacher, student, strict=True)]
    np.testing.assert_allclose(jax.vmap(run)(teacher, student), each, rtol=1e-12)
    np.testing.assert_allclose(run(teacher, student), np.mean(each), rtol=1e-12)


def test_logits_of_all_tokens_are_never_in_memory():
    """Neither forward nor backward, nor a copy of the head for each chunk."""
    texts, tokens, width, words, chunk = 4, 64, 8, 3000, 16
    x = jnp.ones((texts, tokens, width), jnp.float32)
    head = jnp.ones((words, width), jnp.float32)
    mask = jnp.ones((texts, tokens), bool)

    def loss(student, teacher, head, mask):
        return jm.token_divergence(teacher, student, head, mask=mask, chunk=chunk)

    compiled = jax.jit(jax.grad(loss)).lower(x, x, head, mask).compile()
    whole = 4 * texts * tokens * words
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 2
    assert f"{texts},{tokens},{words}" not in compiled.as_text()


def test_chunks_without_tokens_that_count_are_not_computed():
    seen = []

    def function(x):
        jax.debug.callback(lambda y: seen.append(y.shape), x)
        return x[:, 0]

    x = jnp.arange(12.0).reshape(12, 1)
    mask = x[:, 0] % 4 == 1  # 1, 5 and 9: brought together into the first chunk
    found = jax.block_until_ready(over_tokens(function, x, mask=mask, chunk=3))
    jax.effects_barrier()
    np.testing.assert_array_equal(found, np.where(mask, x[:, 0], 0))
    assert len(seen) == 1


def test_low_precision_is_computed_in_float32():
    """Logits of 16 bits are not rounded to them."""
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.normal(size=(n, 64)), jnp.bfloat16) for n in (5, 9))
    found = log_probabilities(hidden, head)
    assert found.dtype == jnp.float32
    exact = (x.astype(jnp.float64) for x in (hidden, head))
    np.testing.assert_allclose(found, log_probabilities(*exact), rtol=0, atol=2e-5)


class TestLosses:
    """`token_distillation` is `distillation` whose head is the same for all tasks."""

    @staticmethod
    def apply(params, inputs):
        return inputs["x"] @ params["body"]

    @staticmethod
    def setup():
        teacher, student, head, mask = problem(seed=3)
        params = {"body": jnp.eye(WIDTH), "head": head}
        batch = {
            name: jm.Taught({"x": x, "mask": mask}, y)
            for name, x, y in (
                ("one", student, teacher),
                ("two", 2 * student, teacher + 1),
            )
        }
        return params, batch, {"mask": lambda inputs: inputs["mask"]}

    def test_it_is_the_same_loss(self):
        params, batch, options = self.setup()
        chunked = jm.token_distillation(
            self.apply, lambda p: p["head"], chunk=4, temperature=2.0, **options
        )
        heads = dict.fromkeys(batch, params["head"].T)
        whole = jm.distillation(
            *(self.apply, lambda head, x: x @ head, heads), temperature=2.0, **options
        )
        logits = {
            task: taught._replace(answers=taught.answers @ params["head"].T)
            for task, taught in batch.items()
        }
        found, expected = chunked(params, {}, batch), whole(params, {}, logits)
        for task in batch:
            np.testing.assert_allclose(found[task], expected[task], rtol=1e-12)
        sure = jm.token_entropies(self.apply, lambda p: p["head"], **options)
        inputs = {task: taught.inputs for task, taught in batch.items()}
        for task, value in sure(params, {}, inputs).items():
            x = self.apply(params, inputs[task])
            expected = jm.token_entropy(x, params["head"], mask=inputs[task]["mask"])
            np.testing.assert_allclose(value, expected, rtol=1e-12)

    def test_the_head_is_no_constant_of_the_program(self):
        params, batch, options = self.setup()
        losses = jm.token_distillation(self.apply, lambda p: p["head"], **options)
        text = jax.jit(losses).lower(params, {}, batch).as_text()
        head = f"tensor<{WORDS}x{WIDTH}xf64>"
        constants = [x for x in text.splitlines() if "constant" in x and head in x]
        assert head in text
        assert constants == []


def test_features_with_a_mask_are_those_that_count():
    teacher, student, _, mask = problem()
    losses = jm.feature_distillation(
        lambda _, inputs: inputs["x"], mask=lambda inputs: inputs["mask"]
    )
    batch = {"one": jm.Taught({"x": student, "mask": mask}, teacher)}
    expected = jm.cosine_distance(teacher[mask], student[mask])
    np.testing.assert_allclose(losses(None, {}, batch)["one"], expected, rtol=1e-12)
