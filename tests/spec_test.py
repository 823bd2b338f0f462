"""Pipelines as text: the grammar, what is refused, and what runs."""

import inspect
import pkgutil
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmerge as jm
from jaxmerge import mapping
from jaxmerge.spec import PRESETS, STEPS, PipelineError, method_markdown, parse
from jaxmerge.spec.steps import REQUIRED, names_of, resolve

SUPPLIED = {"key", "weights", "stack", "ranks"}  # by the pipeline, not by the text


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


# --- reading ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("concat", "concat"),
        ("task_arithmetic|scale(1)", "concat|scale(1.0)"),
        (" elect |\n trim( density = .2 )|core|scale(by=3e-1)", None),
        ("elect(combine=sum_of_agreeing, sign=sign_of_count)|full", None),
        ("elect(sign=sign_of_sum)|full", "elect|full"),
        ("concat|scale(-0.5)|scale(2)", "concat|scale(-0.5)|scale(2.0)"),
        ("total|della(density=0.5, epsilon=0.05)|full", None),
        ("concat|pico()|truncate(rank=4)", "concat|pico|truncate(rank=4)"),
        ("lora_lego(align=False)", "lora_lego(align=False)"),
        ("knots_ties", "elect|trim_whole_model(density=0.2)|knots|scale(0.6)"),
        ("ties", PRESETS["ties"].pipeline),
        ("ties(density=0.2)|core", "ties(density=0.2)|core"),
    ],
)
def test_normal_text(text, normal):
    if normal is not None:
        assert parse(text).text == normal
    assert parse(parse(text).text) == parse(text)
    assert str(parse(text)) == parse(text).text


def test_normal_text_of_the_longer_spellings():
    assert (
        parse(" elect |\n trim( density = .2 )|core|scale(by=3e-1)").text
        == "elect|trim(density=0.2)|core|scale(0.3)"
    )
    assert (
        parse("elect(combine=sum_of_agreeing, sign=sign_of_count)|full").text
        == "elect(sign=sign_of_count, combine=sum_of_agreeing)|full"
    )
    assert parse("total|della(density=0.5, epsilon=0.05)|full").text == (
        "total|della(density=0.5)|full"
    )


REFUSED = [
    # names
    ("elect|core|scal(0.3)", "unknown step 'scal'; did you mean 'scale'?"),
    ("TIES", "did you mean 'ties'?"),
    ("dare-ties", "did you mean 'dare_ties'?"),
    ("xyzzy", "unknown step 'xyzzy'; see jaxmerge methods"),
    ("a.b|full", "'a.b' is not a step"),
    ("concat|(pico|scale(0.3))", "is not a step"),
    ("elect & core", "is not a step"),
    ("lambda: 0", "is not a step"),
    ("knots_ties|scale(0.5)", "complete method"),
    ("knots_ties|scale(0.5)", PRESETS["knots_ties"].pipeline),
    ("knots_ties()", "complete method"),
    # order
    ("elect", "ends with 'elect' (a rule); expected a rule transform (trim"),
    ("elect|trim(density=0.2)", "ends with 'trim' (a rule transform); expected"),
    ("trim(density=0.2)|elect|core", "did you mean 'elect|trim(density=0.2)|core'?"),
    ("concat|scale(0.3)|pico", "did you mean 'concat|pico|scale(0.3)'?"),
    ("scale(0.3)", "'scale' (a post) cannot come first; expected a rule (total"),
    ("core|scale(0.3)", "'core' (a space) cannot come first"),
    ("concat|core", "'core' (a space) cannot follow 'concat'; expected a merger"),
    ("elect|core|core", "'core' (a space) cannot follow 'core'"),
    ("elect|mean|core", "'mean' (a rule) cannot follow 'elect'"),
    (
        "elect|trim_whole_model(density=0.2)|dare(density=0.5)|full",
        "right before the space",
    ),
    # arguments
    ("elect|trim(0.2)|core", "trim takes its arguments by name: write trim(density="),
    ("elect|trim|core", "trim needs density"),
    ("elect|trim(density=2)|core", "trim(density=..): expected a number in (0, 1]"),
    ("elect|trim(density=0)|core", "expected a number in (0, 1], got 0"),
    ("elect|trim(density=-0.1)|core", "got -0.1"),
    ("concat|scale", "scale needs by: write scale(..)"),
    ("concat|scale(0.1, 0.2)", "by name"),
    ("concat|scale(by=1, by=2)", "by is given twice"),
    ("concat|scale(1, by=2)", "by is given twice"),
    ("concat|scale(1e999)", "expected a finite number"),
    ("concat|scale(True)", "expected a finite number, got True"),
    ("concat|scale('1')", "expected a finite number, got '1'"),
    ("concat|scale(1j)", "expected a finite number, got 1j"),
    ("concat|scale([1])", "expected a finite number, got [1]"),
    ("concat|scale(0.1 + 0.2)", "expected a finite number, got 0.1 + 0.2"),
    ("concat|scale(__import__('os'))", "expected a finite number"),
    ("concat|scale(*[1])", "expected a finite number"),
    ("concat|scale(**{})", "no argument '**'"),
    ("concat|truncate(rank=0.5)", "expected a whole number of at least 1, got 0.5"),
    ("concat|truncate(rank=0)", "expected a whole number of at least 1, got 0"),
    ("concat|svc(flor=1)", "svc has no argument 'flor'; did you mean 'floor'?"),
    ("concat|svc(floor=0)", "expected a number above 0"),
    ("concat|isotropize(mean=1)", "write isotropize without arguments"),
    ("lora_lego(align=1)", "expected True or False, got 1"),
    ("elect(sign=sign_of_cont)|full", "did you mean 'sign_of_count'?"),
    ("elect(sign='sign_of_count')|full", "expected sign_of_sum or sign_of_count"),
    ("total|della(density=0.9, epsilon=0.3)|full", "outside (0, 1]"),
    # not even steps
    ("", "cannot be read"),
    ("concat|", "cannot be read"),
    ("concat|scale(0.3", "cannot be read"),
    ("concat; total", "cannot be read"),
    ("concat\0", "cannot be read"),
    ("concat # |scale(0.3)", "no comments"),
    ("concat" + "|scale(1)" * 500, "at most 2000 characters"),
    ("(" * 900 + "concat" + ")" * 900, "cannot be read"),
    (3, "expected text, got int"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refusals_say_what_is_expected(text, message):
    with pytest.raises(PipelineError) as caught:
        parse(text)
    said = str(caught.value)
    assert message in said
    assert said.startswith("pipeline ")
    assert "\n" not in said
    assert len(said) < 600


def argument_values(accepts):
    if accepts.choices:
        return st.sampled_from(list(accepts.choices))
    if accepts.convert is bool:
        return st.booleans()
    if accepts.convert is int:
        return st.integers(1, 99)
    low, high = (-1e6, 1e6) if accepts.within(-1.0) else (1e-4, 0.49)
    return st.one_of(
        st.floats(low, high, allow_nan=False).filter(accepts.within),
        st.integers(int(low), int(high)).filter(accepts.within)
        if low < 0
        else st.just(0.25),
    )


@st.composite
def calls(draw, kind):
    name = draw(st.sampled_from([n for n in names_of(kind) if n != "trim_whole_model"]))
    step, written = STEPS[name], []
    for keyword, argument in step.arguments.items():
        if argument.default is REQUIRED or draw(st.booleans()):
            value = draw(argument_values(argument.accepts))
            if name == "della":
                value = {"density": 0.5, "epsilon": 0.25}[keyword]
            named = keyword != step.positional or draw(st.booleans())
            space = draw(st.sampled_from(["", " ", "\n "]))
            written.append(f"{keyword}{space}={space}{value}" if named else f"{value}")
    written = draw(st.permutations(written))
    return f"{name}({', '.join(written)})" if written or draw(st.booleans()) else name


@st.composite
def pipelines(draw):
    def some(kind, most=2):
        return draw(st.lists(calls(kind), max_size=most))

    if draw(st.booleans()):
        steps = [draw(calls("merger"))]
    else:
        steps = [draw(calls("rule")), *some("rule transform")]
        if draw(st.booleans()):
            steps.append("trim_whole_model(density=0.5)")
        steps.append(draw(st.sampled_from(names_of("space"))))
    steps += [*some("merger transform"), *some("post", 3)]
    bar = draw(st.sampled_from(["|", " | ", "\n| "]))
    return bar.join(steps)


@given(pipelines())
def test_the_normal_text_is_a_fixed_point(text):
    pipeline = parse(text)
    again = parse(pipeline.text)
    assert again == pipeline
    assert again.text == pipeline.text
    assert len(pipeline.order) == len(pipeline.calls)


@given(
    st.one_of(
        st.text(max_size=40),
        st.text(st.sampled_from("|()=,.#'*[]{}:0123 e_-"), max_size=40),
        st.lists(
            st.sampled_from([*STEPS, *PRESETS, "|", "(", ")", "=", "0.5", "density"]),
            max_size=9,
        ).map("".join),
    )
)
def test_any_other_text_is_refused_politely(text):
    try:
        pipeline = parse(text)
    except PipelineError:
        return
    assert parse(pipeline.text) == pipeline


@pytest.mark.parametrize("name", STEPS)
def test_the_table_agrees_with_the_functions(name):
    step = STEPS[name]
    target = resolve(step.target)
    assert getattr(jm, name) is target
    if step.kind == "space":
        assert isinstance(target, jm.Space)
        return
    parameters = {
        keyword: parameter.default
        for keyword, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and keyword not in SUPPLIED
    }
    assert parameters.keys() == step.arguments.keys()
    for keyword, argument in step.arguments.items():
        default = argument.default
        if argument.accepts.choices:
            assert parameters[keyword] is resolve(argument.accepts.choices[default])
        elif default is REQUIRED:
            assert parameters[keyword] is inspect.Parameter.empty
        else:
            assert parameters[keyword] == default
    draws = inspect.signature(target).parameters
    if step.kind == "merger":
        assert step.random == ("key" in draws)


# --- running ---------------------------------------------------------------------


def run(text, stacks, **options):
    pipeline = parse(text)
    if pipeline.random:
        options.setdefault("key", jax.random.key(3))
    return pipeline.run(stacks, **options)


HAND = {
    "concat|scale(0.5)": jm.then(jm.concat, partial(jm.scale, by=0.5)),
    "total|full|scale(0.5)": jm.then(jm.concat, partial(jm.scale, by=0.5)),
    "elect|trim(density=0.5)|core|scale(0.3)": jm.then(
        jm.core_space(jm.trim(jm.elect, density=0.5)), partial(jm.scale, by=0.3)
    ),
    "ties(density=0.5)|core|scale(0.3)": jm.then(
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
}


@pytest.mark.parametrize("text", HAND)
def test_a_pipeline_is_the_composition_it_says(text, pair):
    weights, key = np.array([1.0, -0.5, 2.0]), jax.random.key(3)
    extra = {"key": key} if parse(text).random else {}
    expected = jm.map_modules(HAND[text], pair, weights=weights, **extra)
    same(run(text, pair, weights=weights), expected, rtol=1e-9, atol=1e-12)


def test_no_weights_are_weights_of_one(pair):
    text = "elect|trim(density=0.5)|core|scale(0.3)"
    same(run(text, pair), run(text, pair, weights=[1, 1, 1]), rtol=1e-12)


def test_whole_model_trimming_is_the_function_of_that_name(model):
    found = run("elect|trim_whole_model(density=0.3)|knots|scale(0.6)", model)
    merged = jm.trim_whole_model(jm.knots, jm.elect, model, density=0.3)
    same(found, jm.map_modules(partial(jm.scale, by=0.6), merged), rtol=1e-6)
    module_by_module = run("elect|trim(density=0.3)|knots|scale(0.6)", model)
    assert any(
        not np.allclose(jm.dense(found[name]), jm.dense(module_by_module[name]))
        for name in model
    )


@pytest.mark.parametrize("rest", ["full", "knots|balanced|pico", "core|pico|balanced"])
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


@pytest.mark.parametrize("name", [*PRESETS, "average", "tsv_m", "lora_lego"])
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
    with pytest.raises(PipelineError, match=r"draws at random \(dare\).*--seed"):
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


def test_pipelines_that_differ_in_scale_share_their_programs(pair):
    run("elect|trim(density=0.5)|core|scale(0.1)", pair)
    compiled = mapping._run._cache_size()
    for by in (0.2, 0.3, 1, -2.5):
        run(f"elect|trim(density=0.5)|core|scale({by})", pair)
    run("elect|trim(density=0.5)|core", pair)
    assert mapping._run._cache_size() == compiled


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("elect|trim(density=0.5)|core|scale(0.3)", {"mesh": jm.module_mesh()}),
        ("elect|trim_whole_model(density=0.4)|full", {"chunk": 1}),
    ],
)
def test_chunks_and_devices_change_nothing(text, devices, pair):
    same(run(text, pair, **devices), run(text, pair), rtol=1e-9, atol=1e-12)


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


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_written_in_normal_form_with_their_source(name):
    preset = PRESETS[name]
    assert parse(name).text == parse(preset.pipeline).text
    assert len(parse(preset.pipeline).calls) == preset.pipeline.count("|") + 1
    assert re.fullmatch(r"\d{4}\.\d{5}", preset.arxiv)
    assert preset.source
    # alone, the name of a merger is a merge already
    assert name not in names_of("merger")


def test_the_table_of_methods_is_markdown():
    lines = method_markdown().splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in lines)
    listed = [line.split("`")[1] for line in lines[2:]]
    assert listed == [*PRESETS, *names_of("merger")]
    assert "elect\\|trim_whole_model(density=0.2)\\|knots\\|scale(0.6)" in lines[7]


# --- the package -----------------------------------------------------------------


def test_reading_a_pipeline_does_not_load_jax():
    code = (
        "import sys, jaxmerge.spec as s; s.parse('knots_ties'); s.method_markdown();"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_functions_whatever_was_imported_before():
    code = (
        "import jaxmerge.spec.build, jaxmerge as jm\n"
        "for name in jm.__all__: assert name in dir(jm) and getattr(jm, name), name\n"
        "assert not hasattr(jm, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    modules = {module.name for module in pkgutil.iter_modules(jm.__path__)}
    assert modules & set(jm.__all__) == {"io", "linalg", "models"}
