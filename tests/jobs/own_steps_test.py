"""Merges by steps that are not of jaxmerge: recorded, and verified where known."""

import json

import pytest
from cli_samples import jaxmerge, three
from io_samples import edit

import jaxmerge as jm
from jaxmerge.io import AdapterError
from jaxmerge.spec import STEPS
from jaxmerge.spec.own import forget_built

PIPELINE = "mag_max|core|scale(0.5)"


def mag_max(matrices, **extra):
    return jm.largest_of_agreeing(matrices)


def forget():
    STEPS.pop("mag_max", None)
    forget_built()


@pytest.fixture
def out(tmp_path):
    jm.register_step("mag_max", mag_max, kind="rule")
    folders = three(tmp_path / "in")
    jm.merge(folders, PIPELINE, out=tmp_path / "out")
    yield tmp_path / "out"
    forget()


def test_where_the_step_is_registered_it_is_computed_again(out):
    recipe = json.loads((out / "jaxmerge.json").read_text())["recipe"]
    own = recipe["own_steps"]["mag_max"]
    assert own["functions"] == [f"{__name__}:mag_max"]
    assert own["kind"] == "rule"
    assert "mag_max" in (out / "README.md").read_text().split("## Record")[1]
    found = jm.verify(out)
    assert found.ok
    assert found.recomputed
    assert not found.differences
    assert found.notes == (
        f"the step mag_max is not of jaxmerge but {__name__}:mag_max",
    )


@pytest.mark.usefixtures("no_cache")
def test_elsewhere_it_is_said_what_cannot_be_repeated(out, tmp_path):
    forget()
    found = jm.verify(out)
    assert not found.ok
    assert not found.recomputed
    assert found.missing_steps == ("mag_max",)
    assert not found.differences
    said = jaxmerge("verify", out)
    assert said.exit_code == 2
    assert "NOT computed again, because the step mag_max is not part" in said.stdout
    assert f"{__name__}:mag_max" in said.stdout
    assert "register it (jaxmerge.register_step)" in said.stderr
    document = json.loads(jaxmerge("verify", out, "--json").stdout)
    assert document["ok"] is document["recomputed"] is document["identical"] is False
    assert document["missing_steps"] == ["mag_max"]
    weights = out / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    (out / "more.txt").write_text("more")
    said = jaxmerge("verify", out)
    assert said.exit_code == 1
    assert "is not the file that was written" in said.stdout
    assert "more.txt has no SHA-256" in said.stdout
    config = tmp_path / "in" / "dtd" / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    assert "the input has changed" in jaxmerge("verify", out).stdout


def test_another_function_of_that_name_is_named(out):
    def other(matrices, **extra):
        return jm.total(matrices)

    jm.register_step("mag_max", other, kind="rule", replace=True)
    found = jm.verify(out)
    assert not found.ok
    assert found.recomputed
    assert "<locals>.other is registered in its place" in found.notes[0]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"core": {}}, "recipe.own_steps.core.kind: is missing"),
        ({"a b": {}}, "names of steps"),
        ([], "field recipe.own_steps: expected an object"),
        ("core", "is a step of jaxmerge"),
        ("xyzzy", "own_steps.xyzzy: is not in the pipeline"),
        (None, "unknown step 'mag_max'"),
    ],
)
def test_a_record_cannot_hide_its_steps(out, own, message):
    """What a record says of steps must be so, also where they are not known."""
    forget()

    def change(record):
        recipe = record["recipe"]
        if own is None:
            del recipe["own_steps"]
        elif isinstance(own, str):
            recipe["own_steps"][own] = recipe["own_steps"]["mag_max"]
        else:
            recipe["own_steps"] = own

    edit(out / "jaxmerge.json", change)
    with pytest.raises(AdapterError, match=message):
        jm.verify(out)


def test_a_record_that_does_not_name_a_step_is_a_difference(out):
    edit(out / "jaxmerge.json", lambda record: record["recipe"].pop("own_steps"))
    found = jm.verify(out)
    assert not found.ok
    assert "recipe.own_steps" in found.serious[0].where
