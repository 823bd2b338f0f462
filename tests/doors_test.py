"""Wrong shapes and misspelt keywords are refused, with the way to mend it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.types import LowRank

STACK = jm.stack_adapters([([[1.0]], [[2.0]]), ([[3.0]], [[1.0]])])
MATRICES = np.ones((2, 1, 1), np.float32)
RULES = [
    jm.total, jm.mean, jm.elect, partial(jm.ties, density=0.5), jm.emr, jm.tsv,
    jm.iso_c, jm.iso_cts, jm.cart, partial(jm.keep_largest, density=0.5),
]  # fmt: skip
MERGERS = [
    jm.concat, jm.average, jm.tsv_m, partial(jm.lora_lego, key=None), jm.robust_merge,
    partial(jm.regmean, stats=None), partial(jm.ssr, stats=None),
    jm.core_space(jm.total), jm.pico(jm.concat), jm.balanced(jm.concat), jm.calibrate,
    jm.balance, jm.task_norms,
]  # fmt: skip
POSTS = [
    partial(jm.scale, by=2.0), partial(jm.truncate, rank=1), jm.isotropize, jm.dense,
    partial(jm.svc, stack=STACK), partial(jm.restore_norm, stack=STACK), jm.norm,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_says_how_it_is_put_into_a_space(rule):
    with pytest.raises(jm.Refusal, match=r"\[T, p, q\], not a stack .*core_space\("):
        rule(STACK)
    for wrong in (MATRICES[0], MATRICES[None], 1.0):
        with pytest.raises(jm.Refusal, match=r"takes T matrices \[T, p, q\], got"):
            rule(wrong)


@pytest.mark.parametrize("merger", MERGERS)
def test_a_merger_takes_a_stack_of_adapters(merger):
    for wrong in (MATRICES, {"q": STACK}, LowRank(STACK.b[0], STACK.a[0])):
        with pytest.raises(jm.Refusal, match="stack_adapters"):
            merger(wrong)
    with pytest.raises(jm.Refusal, match=r"b \[T, m, R\] and a \[T, R, n\]"):
        merger(STACK.replace(ranks=(1,)))
    with pytest.raises(jm.Refusal, match=r"of T ranks up to R"):
        merger(STACK.replace(ranks=(1, 2)))


@pytest.mark.parametrize("post", POSTS)
def test_a_post_takes_an_update(post):
    with pytest.raises(jm.Refusal, match="merge it first"):
        post(STACK)
    with pytest.raises(jm.Refusal, match=r"an update \[m, n\]"):
        post(MATRICES)
    with pytest.raises(jm.Refusal, match=r"b \[m, k\] and a \[k, n\]"):
        post(LowRank(jnp.ones((2, 3)), jnp.ones((2, 3))))


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: jm.concat(STACK, wieghts=[1.0, 2.0]), "weights"),
        (lambda: jm.core_space(jm.total)(STACK, weight=[1.0, 2.0]), "weights"),
        (lambda: jm.ties(MATRICES, density=0.5, sing=jm.sign_of_count), "sign"),
        (lambda: jm.svc(MATRICES[0], stack=STACK, flor=0.1), "floor"),
        (
            lambda: jm.map_modules(jm.concat, {"q": STACK}, wieghts=[1.0, 2.0]),
            "weights",
        ),
        (lambda: jm.each_module(jm.concat)({"q": STACK}, weigths=None), "weights"),
        (lambda: jax.jit(partial(jm.concat, wieghts=None))(STACK), "weights"),
    ],
)
def test_a_misspelt_keyword_raises(call, meant):
    with pytest.raises(TypeError, match=f"did you mean '{meant}'"):
        call()


def test_a_call_opts_into_inputs_of_its_own():
    def post(update, *, temperature, **extra):
        return jm.scale(update, by=temperature)

    merger = jm.then(jm.concat, post)
    with pytest.raises(TypeError, match=r"extras=\['temperature'\]"):
        jm.map_modules(merger, {"q": STACK}, temperature=2.0)
    found = jm.map_modules(
        merger, {"q": STACK}, extras=["temperature"], temperature=2.0
    )
    assert jm.dense(found["q"]) == 10
    merge = jax.jit(partial(jm.map_modules, merger, extras=["temperature"]))
    assert jm.dense(merge({"q": STACK}, temperature=2.0)["q"]) == 10
    assert jm.dense(merger(STACK, temperature=2.0)) == 10
