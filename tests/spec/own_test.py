"""Functions of a user's own as steps of pipelines."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.mergers.spaces import core_size, project_core, rebuild_core
from jaxmerge.spec import STEPS, PipelineError, method_table, parse
from jaxmerge.spec.own import forget_built

STACKS = {
    "q": jm.stack_adapters([([[1.0], [4.0]], [[2.0]]), ([[3.0], [1.0]], [[1.0]])]),
    "o": jm.stack_adapters([([[2.0]], [[1.0, 0.0]]), ([[1.0]], [[0.0, 5.0]])]),
}


def mag_max(matrices, *, shrink: float = 1.0, **extra):
    return shrink * jm.largest_of_agreeing(matrices)


@pytest.fixture(autouse=True)
def forgets():
    known = set(STEPS)
    yield
    for name in set(STEPS) - known:
        del STEPS[name]
    forget_built()


def same(text, merger):
    for module, update in jm.parse(text).run(STACKS).items():
        np.testing.assert_allclose(
            jm.dense(update), jm.dense(merger(STACKS[module])), rtol=1e-6
        )


def test_a_rule_is_a_step_with_its_keywords():
    jm.register_step("mag_max", mag_max, kind="rule")
    pipeline = parse("mag_max(shrink=1) | core | scale(.5)")
    assert pipeline.text == "mag_max|core|scale(0.5)"
    assert pipeline.own_steps["mag_max"]["functions"] == [f"{__name__}:mag_max"]
    assert len(pipeline.own_steps["mag_max"]["sha256"]) == 64
    merger = jm.core_space(partial(mag_max, shrink=0.5))
    same("mag_max(shrink=0.5)|core", merger)
    same("mag_max|trim(density=0.5)|full", jm.full_space(jm.trim(mag_max, density=0.5)))
    with pytest.raises(PipelineError, match="expected a finite number, got True"):
        parse("mag_max(shrink=True)|core")
    with pytest.raises(PipelineError, match="did you mean 'mag_max'"):
        parse("magmax|core")
    assert parse("ties(density=0.5)|core").own_steps == {}


def test_every_other_kind():
    def signs(rule, *, times: int = 1):
        return lambda matrices, **extra: rule(times * jnp.sign(matrices), **extra)

    def own_core(*, turned: bool = False):
        return jm.Space(project_core, rebuild_core, core_size)

    def first(stack, *, weights=None, key=None, **extra):
        return jm.LowRank(stack.b[0], stack.a[0])

    def double(update, **extra):
        return jm.scale(update, by=2.0)

    jm.register_step("signs", signs, kind="rule transform")
    jm.register_step("own_core", own_core, kind="space", linear=True)
    jm.register_step("plain_core", jm.core, kind="space", linear=True)
    jm.register_step("first", first, kind="merger", random=True)
    jm.register_step("double", double, kind="post", linear=True)
    jm.register_step("doubled", jm.Calibration(after=double), kind="calibration")
    assert parse("first").random
    signed = jm.core_space(signs(jm.total, times=3))
    for space in ("core", "own_core", "own_core(turned=True)", "plain_core"):
        same(f"total|signs(times=3)|{space}", signed)
    same("concat|doubled|double", lambda s: jm.scale(jm.concat(s), by=4.0))
    assert parse("concat|doubled").own_steps["doubled"]["functions"] == [
        f"{__name__}:test_every_other_kind.<locals>.double"
    ]
    assert not parse("concat|doubled").linear
    assert parse("concat|double").linear


def test_a_merger_that_takes_no_weights_is_not_given_any():
    def first(stack, **extra):
        return jm.LowRank(stack.b[0], stack.a[0])

    jm.register_step("first", first, kind="merger")
    with pytest.raises(
        PipelineError, match="first takes no weights; leave out weights"
    ):
        parse("first").run(STACKS, weights=[1.0, 2.0])
    with pytest.raises(PipelineError, match="first takes no weights"):
        jm.merge(["a", "b"], "first", out="c", weights=[1, 2])


def test_the_methods_stay_those_of_jaxmerge():
    before = method_table()
    jm.register_step("first", lambda stack, **_: jm.concat(stack), kind="merger")
    assert method_table() == before


@pytest.mark.parametrize(
    "name", ["ties", "task_arithmetic", "knots_ties", "a.b", "", "lambda", "é", "1a", 3]
)
def test_names_that_cannot_be_taken(name):
    with pytest.raises(PipelineError, match="register_step"):
        jm.register_step(name, mag_max, kind="rule")


def test_a_name_is_taken_again_only_when_told():
    jm.register_step("mag_max", mag_max, kind="rule")
    held = parse("mag_max|core")
    assert jm.dense(held.run(STACKS)["q"])[1, 0] == pytest.approx(8)
    with pytest.raises(PipelineError, match="replace=True"):
        jm.register_step("mag_max", mag_max, kind="rule")

    def other(matrices, **extra):
        return -jm.largest_of_agreeing(matrices)

    jm.register_step("mag_max", other, kind="rule", replace=True)
    again = parse("mag_max|core").run(STACKS)["q"]
    assert jm.dense(again)[1, 0] == pytest.approx(-8)
    with pytest.raises(PipelineError, match="read its text again"):
        held.run(STACKS)


def needs_stats(matrices, *, stats, **extra):
    return stats


def takes_key(matrices, *, key, **extra):
    return matrices[0]


@pytest.mark.parametrize(
    ("function", "facts", "message"),
    [
        (mag_max, {"kind": "rules"}, "expected one of rule, rule transform, space"),
        (mag_max, {"kind": "learned merger"}, "whole models is called in Python"),
        (partial(mag_max, shrink=2.0), {}, "expected a function, got a partial"),
        (jm.Calibration(), {}, "expected a function, got a Calibration"),
        (mag_max, {"kind": "calibration"}, "expected a jaxmerge.Calibration"),
        (3, {}, "expected a function, got a int"),
        (lambda matrices: matrices[0], {}, r"takes \*\*extra"),
        (lambda matrices, _share, **_: matrices[0], {}, r"behind a \*"),
        (lambda *matrices, **_: matrices[0], {}, "by position"),
        (lambda matrices, *, _by, **_: matrices[0], {}, "Annotate it"),
        (lambda matrices, *, _by="a", **_: matrices[0], {}, "Annotate it"),
        (lambda matrices, *, _by=np.nan, **_: matrices[0], {}, "the default of _by"),
        (takes_key, {}, "say random=True"),
        (needs_stats, {}, "say statistics=True"),
        (mag_max, {"statistics": True}, "to mergers only"),
    ],
)
def test_functions_that_do_not_fit(function, facts, message):
    with pytest.raises(PipelineError, match=message):
        jm.register_step("mine", function, **{"kind": "rule", **facts})
    assert "mine" not in STEPS


def test_a_rule_that_gives_another_shape_is_refused():
    jm.register_step("flat", lambda matrices, **_: matrices.sum(0)[0], kind="rule")
    with pytest.raises(jm.Refusal, match=r"a rule makes one matrix"):
        parse("flat|core").run(STACKS)
