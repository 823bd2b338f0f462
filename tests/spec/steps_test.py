"""The table of steps beside the functions that it names; complete methods; names."""

import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

import jaxmerge as jm
from jaxmerge.spec import PRESETS, STEPS, method_markdown, parse
from jaxmerge.spec.kinds import REQUIRED, resolve
from jaxmerge.spec.steps import names_of

# by the pipeline or the space, not by the text
SUPPLIED = {
    *(
        "key",
        "weights",
        "densities",
        "stack",
        "stats",
        "ranks",
        "size",
        "sample",
        "chunk",
        "mesh",
    )
}
MERGERS = names_of("merger", "model merger", "learned merger")


def keywords(function):
    """Its keyword-only arguments and their defaults."""
    return {
        keyword: parameter.default
        for keyword, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and keyword not in SUPPLIED
    }


@pytest.mark.parametrize("name", STEPS)
def test_the_table_agrees_with_the_functions(name):
    step = STEPS[name]
    target = resolve(step.target)
    if step.kind == "calibration":
        around = getattr(jm, name)
        if not step.arguments:
            assert isinstance(target, jm.Calibration)
            assert callable(around)
            return
        assert keywords(target) == keywords(around)
    else:
        assert getattr(jm, name) is target
    if step.kind == "space" and not step.arguments:
        assert isinstance(target, jm.Space)
        return
    parameters = keywords(target)
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
    if step.kind in ("merger", "model merger"):
        assert step.random == ("key" in draws)
        assert step.statistics == ("stats" in draws)
        assert (step.kind == "model merger") == ("sample" in draws)
    assert (step.kind == "learned merger") == (step.published is not None)


# --- names ------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_written_in_normal_form_with_their_source(name):
    preset = PRESETS[name]
    assert parse(name).text == parse(preset.pipeline).text
    assert len(parse(preset.pipeline).calls) == preset.pipeline.count("|") + 1
    assert re.fullmatch(r"\d{4}\.\d{5}", preset.arxiv)
    assert preset.source
    # alone, the name of a merger is a merge already
    assert name not in MERGERS


def test_the_table_of_methods_is_markdown():
    lines = method_markdown().splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 8 for line in lines)
    listed = [line.split("`")[1] for line in lines[2:]]
    assert listed == [*PRESETS, *MERGERS]
    assert "elect\\|trim_whole_model(density=0.2)\\|knots\\|scale(0.6)" in lines[7]


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
    assert modules & set(jm.__all__) == {
        *("diagnostics", "io", "linalg", "models", "reports", "tasks")
    }
