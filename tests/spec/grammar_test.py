"""The text of pipelines: what is read, and what is refused and how."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmerge.spec import PRESETS, STEPS, PipelineError, parse
from jaxmerge.spec.kinds import REQUIRED
from jaxmerge.spec.steps import names_of


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("concat", "concat"),
        ("task_arithmetic|scale(1)", "concat|scale(1.0)"),
        (
            " elect |\n trim( density = .2 )|core|scale(by=3e-1)",
            "elect|trim(density=0.2)|core|scale(0.3)",
        ),
        (
            "elect(combine=sum_of_agreeing, sign=sign_of_count)|full",
            "elect(sign=sign_of_count, combine=sum_of_agreeing)|full",
        ),
        ("elect(sign=sign_of_sum)|full", "elect|full"),
        ("concat|scale(-0.5)|scale(2)", "concat|scale(-0.5)|scale(2.0)"),
        (
            "total|della(density=0.5, epsilon=0.05)|full",
            "total|della(density=0.5)|full",
        ),
        ("concat|pico()|truncate(rank=4)", "concat|pico|truncate(rank=4)"),
        ("lora_lego(align=False)", "lora_lego(align=False)"),
        ("knots_ties", "elect|trim_whole_model(density=0.2)|knots|scale(0.6)"),
        ("ties", PRESETS["ties"].pipeline),
        ("ties(density=0.2)|core", "ties(density=0.2)|core"),
        (
            "ties(density=0.2)|compressed(rank=16, beta=.25)",
            "ties(density=0.2)|compressed(rank=16)",
        ),
        (
            "regmean(ridge=1e-3, off_diagonal=1)|pico",
            "regmean(ridge=0.001)|pico",
        ),
    ],
)
def test_normal_text(text, normal):
    assert parse(text).text == str(parse(text)) == normal
    assert parse(normal) == parse(text)


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
    ("concat|core", "'core' (a space) cannot follow 'concat'; expected a calibration"),
    ("elect|core|core", "'core' (a space) cannot follow 'core'"),
    ("elect|mean|core", "'mean' (a rule) cannot follow 'elect'"),
    (
        "elect|trim_whole_model(density=0.2)|dare(density=0.5)|full",
        "right before the space",
    ),
    # arguments
    ("elect|trim(0.2)|core", "trim takes its arguments by name: write trim(density="),
    ("elect|trim|core", "trim needs density"),
    ("ties|scale(0.5)", "the complete method 'ties' stands for elect|trim_whole"),
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
    ("ties(density=0.2)|compressed", "compressed needs rank"),
    ("elect|compressed(rank=4, beta=1.5)", "expected a number in [0, 1], got 1.5"),
    ("ssr(ridge=-1)", "expected a number of at least 0, got -1"),
    ("regmean|core", "'core' (a space) cannot follow 'regmean'"),
    ("iteris|pico", "cannot follow 'iteris', which runs the adapters in the model"),
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
    name = draw(st.sampled_from(names_of(kind)))
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
    written.sort(key=lambda argument: "=" in argument)  # values come before names
    return f"{name}({', '.join(written)})" if written or draw(st.booleans()) else name


@st.composite
def pipelines(draw):
    def some(kind, most=2):
        return draw(st.lists(calls(kind), max_size=most))

    first = draw(st.sampled_from(["merger", "model merger", "learned merger", "rule"]))
    if first != "rule":
        steps = [draw(calls(first))]
    else:
        steps = [draw(calls("rule")), *some("rule transform")]
        if draw(st.booleans()):
            steps.append(draw(calls("whole-model transform")))
        steps.append(draw(calls("space")))
    if first != "model merger":
        steps += some("calibration")
    steps += some("post", 3)
    bar = draw(st.sampled_from(["|", " | ", "\n| "]))
    return bar.join(steps)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
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
