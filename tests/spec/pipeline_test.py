"""Pipelines at work: each is the composition that its text says."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import statistics
from tiers import THOROUGH, in_turn

import jaxmerge as jm
from jaxmerge import mapping
from jaxmerge.spec import PRESETS, PipelineError, parse


def stack(ranks, m, n, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return jm.stack_adapters(
        [
            (rng.standard_normal((m, r)), rng.standard_normal((r, n))) if r else None
            for r in ranks
        ],
        dtype=dtype,
    )


@pytest.fixture(scope="module")
def pair():
    """Two modules of one shape, mixed ranks."""
    return {f"0.{name}": stack((2, 3, 1), 9, 7, seed=ord(name)) for name in "qv"}


@pytest.fixture(scope="module")
def model():
    """Two shapes, mixed ranks, and a task that lacks a module."""
    return {
        "0.q": stack((2, 3, 1), 9, 7, seed=1, dtype=np.float32),
        "0.o": stack((2, 3, 0), 7, 12, seed=3, dtype=np.float32),
    }


def same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            jm.dense(found[name]), jm.dense(expected[name]), **tolerance
        )


def run(text, stacks, **options):
    pipeline = parse(text)
    if pipeline.random:
        options.setdefault("key", jax.random.key(3))
    if pipeline.statistics:
        options.setdefault("stats", inputs_of(stacks))
    return pipeline.run(stacks, **options)


def inputs_of(stacks):
    return {name: statistics(stack) for name, stack in stacks.items()}


HAND = {
    "concat|scale(0.5)": jm.then(jm.concat, partial(jm.scale, by=0.5)),
    "elect|trim(density=0.5)|core|scale(0.3)": jm.then(
        jm.core_space(jm.trim(jm.elect, density=0.5)), partial(jm.scale, by=0.3)
    ),
    "elect(sign=sign_of_count, combine=sum_of_agreeing)|knots_unscaled": (
        jm.knots_unscaled_space(
            partial(jm.elect, sign=jm.sign_of_count, combine=jm.sum_of_agreeing)
        )
    ),
    "elect|dare(density=0.5)|trim(density=0.4)|full": jm.full_space(
        jm.trim(jm.dare(jm.elect, density=0.5), density=0.4)
    ),
    "tsv|core|balanced|pico|isotropize|truncate(rank=2)": jm.then(
        jm.pico(jm.balanced(jm.core_space(jm.tsv))),
        jm.isotropize,
        partial(jm.truncate, rank=2),
    ),
    "concat|scale(0.3)|svc(floor=0.5)": jm.then(
        jm.concat, partial(jm.scale, by=0.3), partial(jm.svc, floor=0.5)
    ),
    "lora_lego(rank=2, iterations=3)": partial(jm.lora_lego, rank=2, iterations=3),
    "ties(density=0.5)|compressed(rank=3, beta=0.5)|scale(2)": jm.then(
        jm.ctm(partial(jm.ties, density=0.5), rank=3, beta=0.5),
        partial(jm.scale, by=2.0),
    ),
    "regmean(ridge=0.1, off_diagonal=0.9)|truncate(rank=4)|scale(0.5)": jm.then(
        partial(jm.regmean, ridge=0.1, off_diagonal=0.9),
        partial(jm.truncate, rank=4),
        partial(jm.scale, by=0.5),
    ),
    "ssr|balanced|pico": jm.pico(jm.balanced(jm.ssr)),
}


@pytest.mark.parametrize("text", HAND)
def test_a_pipeline_is_the_composition_it_says(text, pair):
    weights, key = np.array([1.0, -0.5, 2.0]), jax.random.key(3)
    extra = {"key": key} if parse(text).random else {}
    if parse(text).statistics:
        extra["stats"] = inputs_of(pair)
    expected = jm.each_module(HAND[text])(pair, weights=weights, **extra)
    same(run(text, pair, weights=weights), expected, rtol=1e-9, atol=1e-12)


def test_no_weights_are_weights_of_one(pair):
    text = "elect|trim(density=0.5)|core|scale(0.3)"
    same(run(text, pair), run(text, pair, weights=[1, 1, 1]), rtol=1e-12)


def test_whole_model_trimming_is_the_function_of_that_name(model):
    found = run("elect|trim_whole_model(density=0.2)|knots|scale(0.6)", model)
    merged = jm.trim_whole_model(jm.elect, jm.knots, density=0.2)(model)
    same(found, jm.map_modules(partial(jm.scale, by=0.6), merged), rtol=1e-6)


@pytest.mark.parametrize(
    "rest", in_turn(["core|pico|balanced", "compressed(rank=4)|pico", "full"], quick=1)
)
def test_one_module_is_a_whole_model(rest, pair):
    """Around whole-model trimming the merger transforms are taken apart."""
    rest = f"|{rest}|svc(floor=0.5)|scale(0.7)"
    one, weights = {"0.q": pair["0.q"]}, (1.0, 2.0, -1.0)
    whole = run(f"elect|trim_whole_model(density=0.4){rest}", one, weights=weights)
    module = run(f"elect|trim(density=0.4){rest}", one, weights=weights)
    same(whole, module, rtol=1e-8, atol=1e-10)


def test_whole_model_trimming_passes_the_key_on(pair):
    text = "elect|dare(density=0.5)|trim_whole_model(density=0.4)|full"
    first = run(text, pair, key=jax.random.key(0))
    same(run(text, pair, key=jax.random.key(0)), first)
    other = run(text, pair, key=jax.random.key(1))
    assert any(not np.allclose(first[name], other[name]) for name in pair)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*PRESETS, "lora_lego", "regmean", "ssr"])
def test_every_method_runs_on_mixed_ranks(name, model):
    merged = run(name, model, weights=[1.0, 0.5, 2.0])
    assert list(merged) == list(model)
    for module, update in merged.items():
        value = np.asarray(jm.dense(update))
        assert value.dtype == np.float32
        assert value.shape == (model[module].b.shape[1], model[module].a.shape[2])
        assert np.isfinite(value).all()
        assert np.abs(value).max() > 0


def test_a_step_for_equal_ranks_names_the_module_that_has_none(model):
    with pytest.raises(PipelineError, match=r"'0\.q': robust_merge .* \[1, 2, 3\]"):
        run("robust_merge", model)
    equal = {"q": stack((2, 0, 2), 6, 5)}
    assert run("robust_merge", equal)["q"].b.shape == (6, 2)


def test_a_random_pipeline_needs_a_seed_and_depends_on_names_alone(pair):
    text = "elect|dare(density=0.5)|trim(density=0.4)|full"
    assert parse(text).random
    assert not parse("elect|trim(density=0.5)|full").random
    with pytest.raises(PipelineError, match=r"draws at random \(dare\).*key="):
        parse(text).run(pair)
    together = run(text, pair)
    same({"0.v": together["0.v"]}, run(text, {"0.v": pair["0.v"]}), rtol=1e-12)


def test_weights_are_checked(model):
    with pytest.raises(PipelineError, match="2 weights for 3 adapters"):
        run("concat", model, weights=[1.0, 2.0])
    with pytest.raises(PipelineError, match="finite"):
        run("concat", model, weights=[1.0, 2.0, np.nan])
    pair = ([[1.0]], [[2.0]])
    nothing = run("concat", {"q": jm.stack_adapters([pair, pair])}, weights=[1, -1])
    assert jm.dense(nothing["q"]) == 0


@pytest.mark.parametrize("text", ["elect|trim(density=0.5)|core", "regmean"])
def test_pipelines_that_differ_in_scale_share_their_programs(text, pair):
    stats = {"stats": inputs_of(pair)} if parse(text).statistics else {}
    run(f"{text}|scale(0.1)", pair, **stats)
    compiled = mapping._run_one._cache_size()
    for by in (0.2, 0.3, 1, -2.5):
        run(f"{text}|scale({by})", pair, **stats)
    run(text, pair, **stats)
    assert mapping._run_one._cache_size() == compiled


def test_statistics_are_needed_or_refused(pair):
    stats = inputs_of(pair)
    assert parse("regmean|pico").statistics
    assert not parse("ctm_ties").statistics
    with pytest.raises(PipelineError, match=r"needs statistics .*\(ssr\): .*collect"):
        parse("ssr|scale(0.5)").run(pair)
    with pytest.raises(PipelineError, match="uses no statistics"):
        parse("concat").run(pair, stats=stats)
    with pytest.raises(PipelineError, match=r"no statistics of module '0\.v'"):
        parse("ssr").run(pair, stats={"0.q": stats["0.q"]})
    two = {name: jax.tree.map(lambda x: x[:2], value) for name, value in stats.items()}
    with pytest.raises(PipelineError, match=r"0\.q: expected statistics of 3 tasks"):
        parse("ssr").run(pair, stats=two)
    sketches = {
        name: jm.Sketch(value.count, value.mean, value.gram[:, :2], value.count)
        for name, value in stats.items()
    }
    parse("regmean").run(pair, stats=sketches)
    with pytest.raises(PipelineError, match="off_diagonal needs exact moments"):
        parse("regmean(off_diagonal=0.9)").run(pair, stats=sketches)


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("elect|trim(density=0.5)|core|scale(0.3)", {"mesh": jm.module_mesh()}),
        ("elect|trim_whole_model(density=0.4)|full", {"chunk": 1}),
        pytest.param(
            "total|trim_whole_model(density=0.4)|compressed(rank=3)",
            {"chunk": 2},
            marks=THOROUGH,
        ),
        pytest.param("regmean|pico", {"mesh": jm.module_mesh()}, marks=THOROUGH),
    ],
)
def test_chunks_and_devices_change_nothing(text, devices, pair):
    same(run(text, pair, **devices), run(text, pair), rtol=1e-9, atol=1e-12)


def test_iteris_runs_a_model(pair):
    """Where no layer comes before, its rounds are RegMean."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(9, name="q", param_dtype=np.float64)(x)

    rng = np.random.default_rng(0)
    batches = [[jnp.asarray(rng.normal(size=(20, 7)))] for _ in range(3)]
    params = Model().init(jax.random.key(0), batches[0][0])
    sample = jm.ModelSample(Model().apply, params, batches)
    stacks, weights = {"q": pair["0.q"]}, np.array([1.0, 0.5, 2.0])
    stats = jm.stack_moments([{"q": jm.moments_of(batch)} for (batch,) in batches])
    rest = "|truncate(rank=4)|scale(0.5)"
    text = f"iteris(iterations=2, balance=False, ridge=0){rest}"
    expected = run(f"regmean{rest}", stacks, stats=stats, weights=weights)
    same(run(text, stacks, sample=sample, weights=weights), expected, atol=1e-8)
    with pytest.raises(PipelineError, match="needs a model and inputs: give sample"):
        run(text, stacks)
    with pytest.raises(PipelineError, match="needs no sample"):
        run("concat", stacks, sample=sample)
    with pytest.raises(PipelineError, match="statistics cannot stand for the inputs"):
        run(text, stacks, sample=sample, stats=stats)
    two = sample._replace(batches=batches[:2])
    with pytest.raises(PipelineError, match=r"of 2 tasks, the adapters are of \[3\]"):
        run(text, stacks, sample=two)


# --- biases and facts ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "linear", "factor"),
    [
        ("concat", True, 1.0),
        ("concat|balanced|scale(0.5)|scale(0.5)", True, 0.25),
        ("total|knots|scale(2)", True, 2.0),
        ("total|dare(density=0.5)|full", True, 1.0),
        ("average|scale(0.5)", True, 0.5 / 2),
        ("mean|core", True, 1 / 2),
        ("total|trim(density=0.5)|full|scale(0.5)", False, 0.5 / 2),
        ("tsv_m|scale(3)", False, 3 / 2),
        ("concat|scale(2)|isotropize", False, 2 / 2),
        ("concat|pico", False, 1 / 2),
        ("total|compressed(rank=9)", False, 1 / 2),
        ("regmean|scale(0.5)", False, 0.5 / 2),
    ],
)
def test_biases_follow_the_updates_where_they_are_linear(text, linear, factor):
    stacks = {"q": stack((2, 0, 1), 4, 3)}
    bias = jnp.array([[1.0, 2, 3, 4], [0, 0, 0, 0], [10, 20, 30, 40]])
    pipeline = parse(text)
    assert pipeline.linear == linear
    merged = pipeline.merge_biases({"q": bias}, stacks)["q"]
    np.testing.assert_allclose(merged, factor * (bias[0] + bias[2]))
    weighted = pipeline.merge_biases({"q": bias}, stacks, weights=[2, 5, -1])["q"]
    np.testing.assert_allclose(weighted, factor * (2 * bias[0] - bias[2]))


@pytest.mark.parametrize("text", ["concat|scale(0.3)", "mean|core", "average"])
def test_linear_pipelines_treat_a_bias_as_one_more_input_column(text):
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((4, 2)), rng.standard_normal((2, 3))) for _ in "abc"]
    tails = [rng.standard_normal((2, 1)) for _ in pairs]
    wide = jm.stack_adapters(
        [(b, np.hstack([a, c])) for (b, a), c in zip(pairs, tails, strict=True)],
        dtype=np.float64,
    )
    stacks = {"q": jm.stack_adapters(pairs, dtype=np.float64)}
    bias = jnp.stack(
        [jnp.asarray(b @ c)[:, 0] for (b, _), c in zip(pairs, tails, strict=True)]
    )
    expected = jm.dense(run(text, {"q": wide}, weights=[1, 2, -3])["q"])[:, -1]
    found = parse(text).merge_biases({"q": bias}, stacks, weights=[1, 2, -3])["q"]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_order_is_that_of_the_data():
    pipeline = parse("elect|dare(density=0.5)|trim(density=0.2)|core|balanced|pico|svc")
    assert pipeline.order == (
        *("pico", "balanced", "core", "trim(density=0.2)", "dare(density=0.5)"),
        *("elect", "svc"),
    )
