"""Keys of rank_pattern and alpha_pattern: PEFT's rule exactly, in bounded time."""

import json
import re
import time

import io_samples as samples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import in_turn

from jaxmerge import io
from jaxmerge.io.pattern_table import PatternTable
from jaxmerge.io.patterns import Pattern

pytest_plugins = ["io_fixtures"]

PIECES = [
    *(
        "a",
        "b",
        "1",
        "-",
        "\n",
        "{",
        "}",
        "]",
        ".",
        r"\.",
        r"\d",
        r"\w",
        "[ab]",
        "[^a]",
    ),
    *("^", "$", r"\b", "(", "(?:", ")", "|", "*", "+", "?", "*?", "??"),
    *("{2}", "{1,}", "{,2}", "{,}", "{0,3}"),
]


@settings(samples.CALM, max_examples=1500)
@given(
    key=st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
    names=st.lists(st.text("ab.1\n-{}]", max_size=8), min_size=4, max_size=4),
)
def test_keys_match_as_regular_expressions(key, names):
    try:
        expected = re.compile(rf"(.*\.)?({key})$")
    except re.error:
        with pytest.raises(ValueError, match="not a regular expression"):
            Pattern(key)
        return
    if re.search(r"[*+?}]\+", key):  # perhaps possessive
        return
    pattern = Pattern(key)
    for name in names:
        assert pattern.matches(name) == bool(expected.match(name))


REAL = [
    (r"layers\.(0|1|2[0-3])\..*", "model.layers.21.mlp.up_proj", True),
    (r"layers\.(0|1|2[0-3])\..*", "model.layers.24.mlp.up_proj", False),
    (r".*\.\d+\.self_attn\.(q|k)_proj", "model.layers.7.self_attn.k_proj", True),
    (r"^model.decoder.layers.\d{1,2}.fc[12]", "model.decoder.layers.11.fc2", True),
    (r"^model.decoder.layers.\d{1,2}.fc[12]", "x.model.decoder.layers.1.fc2", True),
    (r"^model.decoder.layers.0.fc", "model.decoder.layers.0.fc", True),
    (r"(cross_|self_)?attn", "h.0.cross_attn", True),
    (r"(cross_|self_)?attn", "h.0.flash_attn", False),
    (r"a)|(b", "h.b", True),
    (r"(?:a(?:b.)*)+c", "abxabyc", True),
]


@pytest.mark.parametrize(("key", "module", "matches"), REAL)
def test_keys_that_people_write(key, module, matches):
    assert bool(re.match(rf"(.*\.)?({key})$", module)) == (
        PatternTable([key]).first(module) == key
    )


LETTERS = st.text("ab.1-\n", max_size=8)
NAMES = st.lists(st.sampled_from(["a", "b", "1", "-", ".", r"\."]), max_size=8)


@settings(samples.CALM, max_examples=600)
@given(
    keys=st.lists(NAMES.map("".join) | st.sampled_from(["a.*", "(a|1)", "^b"])),
    name=LETTERS,
)
def test_tables_find_the_first_key_that_matches(keys, name):
    expected = (key for key in keys if re.match(rf"(.*\.)?({key})$", name))
    assert PatternTable(keys).first(name) == next(expected, None)


def test_ten_thousand_names_are_looked_up():
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj"
        for layer in range(100)
        for expert in range(100)
    ]
    table = PatternTable([*names[::-1], "up_proj"])
    before = time.process_time()
    assert [table.first(f"base.{name}") for name in names] == names
    assert table.first("model.layers.100.mlp.up_proj") == "up_proj"
    assert time.process_time() - before < 10


WASTEFUL = {  # keys, and names of modules
    "many long ones": (["a*" * 450 + f"x{i}" for i in range(400)], []),
    "many short ones": ([f"(q|{i})" for i in range(20_000)], []),
    "many modules": ([f"(q|{i})" for i in range(400)], ["h" * 60 + ".fc"] * 1000),
    "long alternatives": (
        [f"(a|b)*(aa|bb)*x{i}" for i in range(300)],
        ["ab" * 200] * 200,
    ),
    "many names": (
        [".".join("a" * (1 + (i >> k) % 2) for k in range(8)) for i in range(256)],
        [".".join(["a" * (1 + i % 2)] * 200) for i in range(4000)],
    ),
}


@pytest.mark.parametrize("name", in_turn([*WASTEFUL], quick=2))
def test_tables_that_take_too_long_are_refused_in_time(name):
    keys, modules = WASTEFUL[name]
    before = time.process_time()
    with pytest.raises(ValueError, match="too many and too long expressions"):
        list(map(PatternTable(keys).first, modules))
    assert time.process_time() - before < 10


def test_what_re_warns_of_is_read_as_it_is():
    assert Pattern("[[a]").matches("[")


HANGING = ["(a+)+x", "(a|a)*x", "(.*)*(.*)*(.*)*x", "a?" * 100 + "a" * 100 + "x"]


@pytest.mark.parametrize("key", HANGING)
def test_hostile_keys_take_no_time(key):
    before = time.process_time()
    assert not Pattern(key).matches("a" * 1000)
    assert time.process_time() - before < 10


@pytest.mark.parametrize("table", ["rank_pattern", "alpha_pattern"])
def test_reading_never_hangs_on_a_key(tmp_path, table):
    """The key matches nothing; the file is refused for its values, read at the end."""
    tensors = {key: value * np.nan for key, value in samples.linear("a" * 60).items()}
    folder = samples.write(tmp_path / "victim", tensors, **{table: {"(a+)+x": 8}})
    samples.refuse_in_time(folder, "NaN or infinite")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("(?=a)b", r"uses \(\?="), ("(?P<n>a)(?P=n)", r"uses \(\?P"),
        (r"(a)\1", r"uses \\1"), ("(a{99}){99}", "too long"), ("a" * 3000, "too long"),
        ("a|" * 1500, "too long"), ("(" * 450 + ")" * 450, "nested too deeply"),
        ("(", "not a regular expression"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", ["rank_pattern", "alpha_pattern"])
def test_keys_that_are_not_read_are_refused_by_name(folder, table, key, reason):
    config = {**samples.BASE, table: {key: 4}}
    (folder / samples.CONFIG).write_text(json.dumps(config))
    samples.refuse(folder, rf"adapter_config\.json: {table}.*{reason}")


def test_endless_names_of_tensors_are_refused(tmp_path):
    folder = samples.write(tmp_path / "victim", samples.linear("a" * 2000))
    with pytest.raises(io.AdapterError, match=r"safetensors.*2031 characters"):
        samples.load_one(folder)
