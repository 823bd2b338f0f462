"""YAML of unknown origin: what JSON could say, each name once, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmerge.untrusted.yaml_text import as_yaml, parse_yaml, read_yaml

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=8)
    | st.sampled_from(["no", "1e-3", "0x1", "~", "2024-01-01", "<<", "=", "!a", "*a"]),
    lambda x: (
        st.lists(x, max_size=3) | st.dictionaries(st.text("abc-:# "), x, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_what_is_written_is_read_as_it_was(value):
    assert parse_yaml(as_yaml(value).encode()) == value


def test_values_are_those_of_json():
    text = b"{a: no, b: 1e-3, c: -2, d: .5, e: ~, f: true, g: 2024-01-01, h: 0x10}"
    assert parse_yaml(text) == {
        **{"a": "no", "b": 0.001, "c": -2, "d": 0.5, "e": None, "f": True},
        **{"g": "2024-01-01", "h": "0x10"},
    }
    assert type(parse_yaml(b"3")) is int
    assert parse_yaml(b'{"a": [1, "x"]}') == {"a": [1, "x"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: 1\na: 2", "line 2: 'a' occurs twice"),
        (b"a: {b: 1, b: 1}", "occurs twice"),
        (b"a: !!python/object/apply:os.system [ls]", "tags are not read"),
        (b"a: !!str 1", "tags are not read"),
        (b"a: &x 1\nb: *x", "anchors and aliases are not read"),
        (b"a: *x", "anchors and aliases are not read"),
        (b"[" * 10_000, "nested too deeply"),
        (b"- " * 10_000, "nested too deeply"),
        (b"1: 2", "a name that is no text"),
        (b"a: 1e999", "too large"),
        (b'a: "\\ud800"', "half a character"),
        (b"a: 'x", "line 1"),
        (b"--- 1\n--- 2", "another document"),
        (b"\xff", "not text in UTF-8"),
    ],
)
def test_what_has_two_readings_or_builds_things_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_yaml(text)


def test_a_file_is_bounded(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"# " + b"x" * 2**20)
    with pytest.raises(ValueError, match="too large, more than 1 MiB"):
        read_yaml(path)
