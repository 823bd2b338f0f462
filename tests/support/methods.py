"""One table of all mergers, with the laws that each of them obeys."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.mergers.regmean import of_regmean


class Method(NamedTuple):
    """A merger and what is promised about it.

    one: a single adapter comes back unchanged.
    gauge: depends on the updates alone, not on the factors.
    order: the order of the tasks does not matter.
    rank: a bound of the rank of the result, "sum", "max" or "full".
    random: needs a key.
    data: needs statistics of inputs.
    dense: forms matrices of the size of the updates.
    equal_ranks: why it merges adapters of equal ranks only, if it does.

    Called operation by operation, so that mergers share the programs of those that they
    have in common; where the shapes are new, one program for a whole merge is faster.
    """

    merger: jm.Merger
    one: bool = True
    gauge: bool = True
    order: bool = True
    rank: str = "sum"
    random: bool = False
    data: bool = False
    dense: bool = False
    equal_ranks: str = ""

    def __call__(self, stack, **extra):
        return jm.dense(self.merger(stack, **self.inputs(stack) | extra))

    def compiled(self, stack, **extra):
        """The same as one program, kept for others of the same shapes and ranks."""
        return _merge(self.merger, self.random, self.data, stack, extra)

    def inputs(self, stack) -> dict:
        """What a call needs beside the adapters."""
        inputs = {"key": jax.random.key(7)} if self.random else {}
        return inputs | ({"stats": statistics(stack)} if self.data else {})

    def check_fits(self, ranks) -> None:
        """Skips a test on adapters that the merger is not for."""
        if self.equal_ranks and len({rank for rank in ranks if rank}) > 1:
            pytest.skip(self.equal_ranks)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _merge(merger, random, data, stack, extra):
    return Method(merger, random=random, data=data)(stack, **extra)


RULES: dict[str, tuple[Callable, dict]] = {
    "total": (jm.total, {}),
    "mean": (jm.mean, {}),
    "elect": (jm.elect, {}),
    "ties": (partial(jm.ties, density=0.3), {"one": False}),
    "ties_of_count": (
        partial(
            jm.ties, density=0.3, sign=jm.sign_of_count, combine=jm.sum_of_agreeing
        ),
        {"one": False},
    ),
    "dare": (jm.dare(jm.total, density=0.5), {"one": False, "random": True}),
    "dare_ties": (
        jm.dare(jm.trim(jm.elect, density=0.5), density=0.5),
        {"one": False, "random": True},
    ),
    "della": (
        jm.della(jm.elect, density=0.5, epsilon=0.2),
        {"one": False, "random": True},
    ),
    "tsv": (jm.tsv, {}),
    "iso_c": (jm.iso_c, {"one": False}),
    "iso_cts": (jm.iso_cts, {"one": False}),
    "cart": (partial(jm.cart, rank_fraction=0.3, by=0.5), {}),
    "emr": (jm.emr, {}),
}
SPACES = {
    "full": jm.full_space,
    "core": jm.core_space,
    "knots": jm.knots_space,
    "knots_unscaled": jm.knots_unscaled_space,
}
SPECTRAL = ("total", "mean", "tsv", "iso_c", "iso_cts", "cart")


def _in_space(space: str, rule: str) -> Method:
    facts = dict(RULES[rule][1])
    entrywise = rule not in SPECTRAL
    facts.setdefault("order", not facts.get("random", False))
    # the coordinates of core space follow the factors, those of KnOTS do not
    facts.setdefault("gauge", not (entrywise and space == "core"))
    if rule == "ties_of_count" and space != "full":
        facts.update(gauge=False, order=False)  # a tie goes to +, whatever the basis
    if space == "knots_unscaled" and rule in ("iso_c", "iso_cts"):
        facts["one"] = True  # without S the spectrum of one adapter is flat already
    facts["rank"] = "full" if entrywise and space == "full" else "sum"
    facts["dense"] = space == "full"
    return Method(SPACES[space](RULES[rule][0]), **facts)


METHODS: dict[str, Method] = {
    f"{space}/{rule}": _in_space(space, rule)
    for space, rules in {
        "full": RULES,
        "core": RULES,
        "knots": [rule for rule in RULES if rule not in ("elect", "ties_of_count")],
        "knots_unscaled": ["total", "ties", "iso_c"],
    }.items()
    for rule in rules
} | {
    "concat": Method(jm.concat),
    "average": Method(jm.average),
    "tsv_m": Method(jm.tsv_m),
    "tsv_m|isotropize": Method(jm.then(jm.tsv_m, jm.isotropize), one=False),
    "concat|svc": Method(jm.then(jm.concat, jm.svc)),
    "full/ties|svc": Method(
        jm.then(jm.full_space(RULES["ties"][0]), jm.svc),
        one=False,
        rank="full",
        dense=True,
    ),
    "concat|truncate": Method(jm.then(jm.concat, partial(jm.truncate, rank=4))),
    "pico(concat)": Method(jm.pico(jm.concat), gauge=False),
    "pico(core/ties)": Method(
        jm.pico(jm.core_space(RULES["ties"][0])), one=False, gauge=False
    ),
    "pico(tsv_m)": Method(jm.pico(jm.tsv_m), gauge=False),
    "balanced(pico(concat))": Method(jm.balanced(jm.pico(jm.concat))),
    "balanced(core/ties)": Method(
        jm.balanced(jm.core_space(RULES["ties"][0]))  # the core of one is diagonal
    ),
    "soft_threshold(concat)": Method(
        jm.soft_threshold(jm.concat, threshold=0.2), one=False
    ),
    "soft_threshold(tsv_m), squared": Method(
        jm.soft_threshold(jm.tsv_m, threshold=0.1, squared=True), one=False
    ),
    "robust_merge": Method(
        jm.robust_merge,
        one=False,
        gauge=False,
        rank="max",
        equal_ranks="adds factors, so all ranks must be equal",
    ),
    "lora_lego": Method(
        jm.lora_lego, gauge=False, order=False, random=True, rank="max"
    ),
    "ctm(total)": Method(jm.ctm(jm.total, rank=4)),
    "regmean": Method(jm.regmean, data=True),
    "ssr": Method(jm.ssr, data=True),
    "tsv_m of regmean_adapters": Method(
        jm.calibrated(jm.tsv_m, of_regmean()), data=True
    ),
    "pico(regmean)": Method(jm.pico(jm.regmean), gauge=False, data=True),
}


class Run(NamedTuple):
    update: jax.Array
    loss: jax.Array  # sum(update * target)
    gradient: jm.AdapterStack


def run(name: str, stack: jm.AdapterStack, inputs=None, *, batched=False) -> Run:
    """A merge and its gradient, as one program for all laws of a merger.

    ``batched`` for the adapters of many modules of one shape, and their inputs.
    """
    inputs = METHODS[name].inputs(stack) if inputs is None else inputs
    m, n = stack.b.shape[-2], stack.a.shape[-1]
    target = np.random.default_rng(1).normal(size=(m, n))
    (loss, update), gradient = _differentiated(name, batched)(stack, inputs, target)
    return Run(update, loss, gradient)


@cache
def _differentiated(name, batched):
    @partial(jax.value_and_grad, has_aux=True)
    def loss(stack, inputs, target):
        update = METHODS[name](stack, **inputs)
        return jnp.sum(update * target), update

    one_key = None if METHODS[name].random else 0
    return jax.jit(jax.vmap(loss, (0, one_key, None)) if batched else loss)


def statistics(stack: jm.AdapterStack) -> jm.Moments:
    """Moments of inputs near what each adapter sees, [T, ..].

    A function of the row spaces of A alone, so that they follow the order of the tasks
    and no change of factors.
    """
    n, dtype = stack.a.shape[-1], stack.a.dtype
    _, _, rows = jm.linalg.svd(jax.lax.stop_gradient(stack.a))
    sample = jnp.asarray(np.random.default_rng(n).normal(size=(3 * n, n)), dtype)
    seen = jnp.einsum("tkn,tkp->tnp", rows, rows)
    inputs = jnp.einsum(
        "in,tnp->tip", sample, seen + 0.3 * jnp.eye(n, dtype=dtype)[None]
    )
    return jax.vmap(jm.moments_of)(inputs)


# ranks, m, n
INPUTS = {  # nine directions in all where they fit, so that tests share programs
    "equal": ((3, 3, 3), 14, 11),
    "mixed": ((2, 4, 3), 14, 11),
    "absent": ((3, 0, 3, 3), 14, 11),
    "overfull": ((4, 4, 4), 10, 7),
}


def random_stack(
    ranks, m, n, *, seed=0, dtype=np.float64, scale=1.0
) -> jm.AdapterStack:
    """Gaussian adapters; rank 0 makes a task that lacks the module."""
    rng = np.random.default_rng(seed)
    return jm.stack_adapters(
        [
            (scale * rng.normal(size=(m, r)), rng.normal(size=(r, n))) if r else None
            for r in ranks
        ],
        dtype=dtype,
    )


BROKEN = {
    f"{value}_in_{factor}": (factor, value)
    for factor in "ba"
    for value in (np.nan, np.inf, -np.inf)
}


def broken(stack, kind):
    """One entry of one task is not a number, or not finite."""
    factor, value = BROKEN[kind]
    changed = getattr(stack, factor).at[1, 2, 1].set(value)
    return stack.replace(**{factor: changed})


def gaussian(*shape, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def task_updates(stack: jm.AdapterStack) -> np.ndarray:
    """The T updates of a module, [T, m, n], zeros where a task lacks it."""
    return np.matmul(np.asarray(stack.b), np.asarray(stack.a))


def distance(x, y) -> float:
    """Relative Frobenius distance."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30))


def tolerance(dtype) -> float:
    """The one tolerance of the laws, by precision."""
    return 2e-4 if np.dtype(dtype) == np.float32 else 1e-9


def check_jit(method: Method, ranks, m, n, *, dtype) -> None:
    """A merger gives the same compiled, and is traced once for one shape."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(stack, weights):
        return method(stack, weights=weights)

    for seed in range(2):
        stack = random_stack(ranks, m, n, dtype=dtype, seed=seed)
        weights = jnp.linspace(0.5, 2.0, len(ranks), dtype=dtype)
        compiled, eager = (merge(stack, weights=weights) for merge in (traced, method))
        assert distance(compiled, eager) < tolerance(dtype)
