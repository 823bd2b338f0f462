"""Teachers in few numbers: the likeliest tokens of each, and the mass of the rest."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm

TEXTS, TOKENS, WIDTH, WORDS, RANK = 3, 5, 4, 12, 2


def problem(dtype=np.float64, seed=0):
    """Hidden states of a teacher and a student, their heads, and what counts."""
    rng = np.random.default_rng(seed)
    shape = (TEXTS, TOKENS, WIDTH)
    teacher, student = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    rows = jnp.asarray(rng.normal(size=(WORDS, WIDTH)).astype(dtype))
    heads = [
        jm.AdaptedHead(
            rows,
            jm.LowRank(
                jnp.asarray(rng.normal(size=(WORDS, RANK)).astype(dtype)),
                jnp.asarray(rng.normal(size=(RANK, WIDTH)).astype(dtype)),
            ),
        )
        for _ in range(2)
    ]
    mask = jnp.arange(TOKENS)[None, :] < jnp.array([[2], [5], [0]])
    return jnp.asarray(teacher), jnp.asarray(student), heads, mask


def whole(head):
    return head.rows + jm.dense(head.update)


def divergence(k, teacher, student, heads, mask, **options):
    """Of the student's hidden states, by what is kept of the teacher."""
    how = {"mask": mask, "temperature": 1.7, **options}
    known = jm.top_tokens(teacher, heads[0], k=k, **how)
    return jm.token_divergence(known, student, heads[1], **how)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_all_tokens_tell_everything(dtype):
    """Value and gradient are those of all logits, in hidden states and in the head."""
    teacher, student, heads, mask = problem(dtype)

    def kept(student, update, chunk):
        mine = [heads[0], heads[1]._replace(update=update)]
        return divergence(WORDS, teacher, student, mine, mask, chunk=chunk)

    def full(student, update):
        mine = heads[1]._replace(update=update)
        pair = teacher @ whole(heads[0]).T, student @ whole(mine).T
        return jm.divergence(*pair, mask=mask, temperature=1.7)

    given = (student, heads[1].update)
    expected = jax.jit(jax.value_and_grad(full, argnums=(0, 1)))(*given)
    for chunk in (2, 256):
        run = jax.value_and_grad(partial(kept, chunk=chunk), argnums=(0, 1))
        found = jax.jit(run)(*given)
        near = {"rtol": 0, "atol": 2e-6 if dtype == np.float32 else 1e-13}
        for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            assert x.dtype == dtype
            np.testing.assert_allclose(x, y, **near)


@pytest.mark.thorough
def test_more_tokens_come_nearer_to_all():
    """Joining words never adds to a divergence, so it rises with k to that of all."""
    given = problem()
    found = [float(divergence(k, *given)) for k in range(1, WORDS + 1)]
    assert (np.diff(found) > 0).all()
    assert found[-2] == pytest.approx(found[-1], rel=0.05)


def test_it_is_the_divergence_with_the_rest_as_one_word():
    teacher, student, heads, mask = problem()
    k = 3
    p, q = (
        np.asarray(jax.nn.softmax(x @ whole(head).T / 1.7))
        for x, head in zip((teacher, student), heads, strict=True)
    )
    order = np.argsort(-p, axis=-1)
    p, q = (np.take_along_axis(x, order, axis=-1) for x in (p, q))
    joined = [
        np.concatenate([x[..., :k], x[..., k:].sum(-1, keepdims=True)], axis=-1)
        for x in (p, q)
    ]
    each = (joined[0] * np.log(joined[0] / joined[1])).sum(-1)
    expected = 1.7**2 * each[np.asarray(mask)].mean()
    found = divergence(k, teacher, student, heads, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    kept = jm.top_tokens(teacher, heads[0], k=k, mask=mask, temperature=1.7)
    np.testing.assert_array_equal(kept.ids[mask], order[np.asarray(mask)][:, :k])
    total = jnp.exp(kept.log_p).sum(-1) + jnp.exp(kept.log_rest)
    np.testing.assert_allclose(total[mask], 1, rtol=1e-12)


@pytest.mark.parametrize("k", [1, WORDS])
def test_who_is_sure_has_finite_gradients(k):
    teacher, student, heads, mask = problem(np.float32)
    own = jm.top_tokens(300 * teacher, heads[0], k=k)
    run = jax.value_and_grad(lambda x: jm.token_divergence(own, x, heads[1], mask=mask))
    for x in jax.jit(run)(-300 * student):
        assert np.isfinite(x).all()


def test_a_head_can_be_taught_too():
    """Its gradient is taken where it is asked for; the teacher stays as it is."""
    teacher, student, heads, mask = problem()

    def full(rows):
        known = jax.lax.stop_gradient(teacher @ rows.T)
        return jm.divergence(known, student @ rows.T, mask=mask)

    def chunked(rows):
        return jm.token_divergence(teacher, student, rows, mask=mask, chunk=2)

    found, expected = (jax.grad(f)(heads[0].rows) for f in (chunked, full))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


class TestLosses:
    """Teachers that are asked anew, or whose answers are kept, with heads of theirs."""

    @staticmethod
    def setup():
        _, student, heads, mask = problem()
        params = {"body": jnp.eye(WIDTH), "rows": heads[0].rows}
        inputs = {"x": student, "mask": mask}
        updates = {"head": heads[1].update}
        losses = partial(
            jm.token_distillation,
            lambda params, inputs: inputs["x"] @ params["body"],
            lambda params: params["rows"],
            head="head",
            mask=lambda inputs: inputs["mask"],
        )
        return losses, params, inputs, updates, heads

    def test_both_are_the_same(self):
        losses, params, inputs, updates, heads = self.setup()
        asked = losses(teachers={"one": {"head": heads[0].update}}, top=WORDS)
        found = asked(params, updates, {"one": inputs})["one"]
        known = jm.top_tokens(inputs["x"], heads[0], k=WORDS)
        kept = losses()(params, updates, {"one": jm.Taught(inputs, known)})["one"]
        pair = (inputs["x"] @ whole(head).T for head in heads)
        expected = jm.divergence(*pair, mask=inputs["mask"])
        np.testing.assert_allclose([found, kept], expected, rtol=1e-12)
        sure = jm.token_entropies(
            lambda _, inputs: inputs["x"],
            lambda params: params["rows"],
            head="head",
        )
        said = jm.entropy(inputs["x"] @ whole(heads[1]).T, epsilon=0)
        alone = sure(params, updates, {"one": inputs})["one"]
        np.testing.assert_allclose(alone, said, rtol=1e-12)

    def test_hidden_states_do_not_tell_what_is_said(self):
        losses, params, inputs, updates, _ = self.setup()
        with pytest.raises(jm.Refusal, match=r"give jaxmerge\.top_tokens as answers"):
            losses()(params, updates, {"one": jm.Taught(inputs, inputs["x"])})
        wide = {"head": jm.LowRank(jnp.ones((3, 1)), jnp.ones((1, WIDTH)))}
        with pytest.raises(
            jm.Refusal, match=r"head: the head is \(12, 4\), its update"
        ):
            losses()(params, wide, {"one": jm.Taught(inputs, inputs["x"])})
        with pytest.raises(jm.Refusal, match="k = 13, expected 1 to 12"):
            jm.top_tokens(inputs["x"], params["rows"], k=WORDS + 1)
