"""Refusals keep the options that they name as data, for every face to spell."""

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import io_samples as samples
import numpy as np
import pytest

import jaxmerge
from jaxmerge import io
from jaxmerge.learning.checkpoint import CheckpointError
from jaxmerge.refusals import Message, Option, Refusal

PARTS = ("x: no alpha; pass ", Option("assume_alpha", "rank", quoted=True), " or so")
PACKAGE = Path(jaxmerge.__file__).parent
SPELLED = re.compile(
    r"(?<![\w-])--[a-z]"
    r"|\b(heads|assume_alpha|strip_prefix|add_prefix|allow_different_bases|allow_zero"
    r"|ignore_config_keys|vera_inputs|text_heads|logit_scale|max_length|work|force)="
)


def flag(option: Option) -> str:
    return f"--{option.name.replace('_', '-')} {option.value}".rstrip()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (Option("force"), "force"),
        (Option("allow_zero", "True"), "allow_zero=True"),
        (Option("rank", "<number>"), "rank=<number>"),
        (Option("heads", "keep", quoted=True), "heads='keep'"),
        (Option("add_prefix", quoted=True), "add_prefix=''"),
        (Option("add_prefix", "it's", quoted=True), 'add_prefix="it\'s"'),
        (
            Option("vera_inputs", ("q=4", "v=8"), tabled=True),
            "vera_inputs={'q': 4, 'v': 8}",
        ),
        (
            Option("ignore_config_keys", ("a", "b"), quoted=True, listed=True),
            "ignore_config_keys=['a', 'b']",
        ),
    ],
)
def test_an_option_reads_as_in_python(option, text):
    assert str(option) == f"{option}" == text


def test_a_message_is_spelled_by_whoever_shows_it():
    message = Message(PARTS)
    assert str(message) == f"{message}" == "x: no alpha; pass assume_alpha='rank' or so"
    assert message.spelled(flag) == "x: no alpha; pass --assume-alpha rank or so"
    assert str(Message()) == ""


@pytest.mark.parametrize("kind", [Refusal, io.AdapterError, CheckpointError])
def test_a_refusal_is_a_value_error_with_its_message(kind):
    error = kind(*PARTS)
    assert isinstance(error, ValueError)
    assert error.message == Message(PARTS)
    assert str(error) == str(error.message)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, str(again)) == (kind, error.message, str(error))
    assert isinstance(again.message[1], Option)


def test_a_refusal_may_hold_the_message_of_another():
    inner = Refusal(*PARTS)
    outer = io.AdapterError("folder (", *inner.message, ")")
    assert str(outer) == f"folder ({inner})"
    assert outer.message.spelled(flag).endswith("pass --assume-alpha rank or so)")


def test_options_of_an_inner_error_survive(tmp_path):
    folder = samples.write(tmp_path / "one", samples.linear())
    (folder / "adapter_config.json").unlink()
    (folder / "other.bin").write_bytes(b"x")
    with pytest.raises(io.AdapterError, match="several weight files") as refused:
        io.load_peft([folder])
    assert Option("weight_file", "bin", quoted=True) in refused.value.message


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"heads": "all"}, Option("heads", "all", quoted=True)),
        ({"layout": 3}, Option("layout", "3")),
        ({"assume_alpha": np.inf}, Option("assume_alpha")),
        ({"vera_inputs": 0}, Option("vera_inputs")),
    ],
)
def test_a_value_that_cannot_be_is_part_of_its_option(options, option):
    with pytest.raises(io.AdapterError) as refused:
        io.ReadOptions(**options)
    assert refused.value.message[0] == option


def test_no_message_spells_an_option():
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "cli"
        for line, text in messages(path)
        if SPELLED.search(text)
    ]
    assert not found, "\n".join(found)


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of the strings in what a file raises, or yields as a conflict."""
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Raise | ast.Yield):
            for node in ast.walk(statement):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.lineno, node.value
