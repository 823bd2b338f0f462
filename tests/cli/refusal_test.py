"""What ``jaxmerge merge`` refuses, how it says so, and that it leaves no trace."""

import io_samples as samples
import pytest
from cli_samples import (
    close,
    everything,
    jaxmerge,
    refuse,
    succeed,
    three,
    updates_of,
    weighted_sum,
)

from jaxmerge.jobs.merge_recipe import MergeRecipe

pytestmark = pytest.mark.usefixtures("no_cache")


@pytest.fixture
def folders(tmp_path):
    return three(tmp_path / "in")


def test_options_of_reading(tmp_path):
    plain = samples.write(tmp_path / "a")
    ask = ("-p", "concat", "-o", tmp_path / "out")

    def other(name, tensors=None, **config):
        return "merge", plain, samples.write(tmp_path / name, tensors, **config), *ask

    case = other("alpha", lora_alpha=None)
    assert "pass --assume-alpha <number>" in refuse(*case)
    succeed(*case, "--assume-alpha", 8)
    close(updates_of(tmp_path / "out"), weighted_sum([plain, plain], [1, 1]))
    succeed(*case, "--assume-alpha", "rank", "--force")
    close(updates_of(tmp_path / "out"), weighted_sum([plain], [1.5]))
    assert "--assume-alpha" in refuse(*case, "--assume-alpha", "much", "--force")
    case = other("base", base_model_name_or_path="org/other")
    assert "pass --allow-different-bases" in refuse(*case, "--force")
    succeed(*case, "--allow-different-bases", "--force")
    case = other("prefix", samples.linear("model.h.0.fc"))
    said = refuse(*case, "--force")
    assert "pass --strip-prefix model. or --add-prefix model." in said
    succeed(*case, "--strip-prefix", "model.", "--force")
    succeed(*case, "--add-prefix", "model.", "--force")
    assert list(updates_of(tmp_path / "out")) == ["model.h.0.fc"]
    case = other("key", sparkle=3)
    assert "pass --ignore-config-key sparkle" in refuse(*case, "--force")
    succeed(*case, "--ignore-config-key", "sparkle", "--force")
    zero = {key: 0 * value for key, value in samples.linear().items()}
    case = other("zero", zero)
    assert "--allow-zero" in refuse(*case, "--force")
    succeed(*case, "--allow-zero", "--force")
    said = refuse(*other("a2"), "--force", "--vera-input", "wide")
    assert "expected a size or name=size, got 'wide'" in said


def test_nothing_is_overwritten_without_force(folders, tmp_path):
    ask = ("merge", *folders, "-p", "concat", "-o", tmp_path / "out")
    succeed(*ask)
    before = everything(tmp_path)
    said = refuse(*ask)
    assert "exists already" in said
    assert "--force" in said
    assert everything(tmp_path) == before
    succeed(*ask[:-3], "concat|scale(2)", "-o", tmp_path / "out", "--force")
    assert everything(tmp_path) != before
    said = refuse(*ask[:-1], tmp_path / "in", "--force")
    assert "is or holds the input" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "elect|trim(density=0.2)|cor"), "did you mean 'core'?"),
        (("-p", "elect"), "expected a rule transform"),
        (("-p", "concat", "--weights", "1,2"), "2 weights for 3 adapters"),
        (("-p", "concat", "--weights", "1,two,3"), "--weights"),
        (("-p", "concat", "--weights", "1", "2", "0.5"), "--weights 1,2,0.5"),
        (("-p", "concat", "--weights", "-1", ".5", "2e-1"), "--weights -1,.5,2e-1"),
        (("-p", "concat", "--weights", "1 2 .5"), "write 1,2,.5"),
        (("-p", "concat", "--weights", "[1, 2; -3]"), "write 1,2,-3"),
        (("-p", "cat"), "PEFT's cat is concat"),
        (("-p", "concat", "--weights", "1,nan,3"), "finite"),
        (("-p", "robust_merge"), "'h.0.o': robust_merge needs adapters of one rank"),
        (("-p", "concat|scale(1e39)"), "infinite in a module ('h.0.o')"),
        (("-p", "concat", "--frob"), "--frob"),
        (("-p", "concat", "--seed", "-1"), "--seed"),
        ((), "--pipeline"),
    ],
)
def test_refusals_leave_no_trace(arguments, message, folders, tmp_path):
    before = everything(tmp_path)
    said = refuse("merge", *folders, "-o", tmp_path / "deep" / "out", *arguments)
    assert message in said
    assert everything(tmp_path) == before
    assert not (tmp_path / "deep").exists()


def test_missing_and_broken_inputs_are_named(folders, tmp_path):
    ask = ("merge", folders[0], tmp_path / "nothing", "-p", "concat")
    assert f"{tmp_path / 'nothing'}: no such folder" in refuse(*ask, "-o", "x")
    weights = folders[1] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert str(weights) in refuse("merge", *folders, "-p", "concat", "-o", "x")


def test_internal_failures_are_told_apart(folders, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the sky fell\nsecond line")

    monkeypatch.setattr(MergeRecipe, "run", fail)
    monkeypatch.delenv("JAXMERGE_TRACEBACK", raising=False)
    ask = ("merge", *folders, "-p", "concat", "-o", tmp_path / "out")
    result = jaxmerge(*ask)
    assert result.exit_code == 70
    assert result.stderr.startswith("error: internal failure, RuntimeError: the sky")
    assert "--traceback" in result.stderr
    assert "Traceback" not in result.stderr
    for shown in (jaxmerge(*ask, "--traceback"), jaxmerge("--traceback", *ask)):
        assert shown.exit_code == 70
        assert "Traceback (most recent call last)" in shown.stderr
        assert "second line" in shown.stderr
    monkeypatch.setenv("JAXMERGE_TRACEBACK", "1")
    assert "Traceback" in jaxmerge(*ask).stderr
    monkeypatch.delenv("JAXMERGE_TRACEBACK")
    assert not (tmp_path / "out").exists()

    def exhaust(*_, **__):
        raise MemoryError

    monkeypatch.setattr(MergeRecipe, "run", exhaust)
    result = jaxmerge(*ask)
    assert (result.exit_code, "--chunk 1" in result.stderr) == (70, True)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(MergeRecipe, "run", interrupt)
    assert jaxmerge(*ask).exit_code == 130
