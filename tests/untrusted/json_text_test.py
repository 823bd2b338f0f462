"""JSON of unknown origin takes bounded memory, and means one thing or is refused."""

import pytest

from jaxmerge.untrusted.json_text import parse_json, read_json

REFUSED = {
    "twice": (b'{"a": 1, "a": 1}', "a key occurs twice"),
    "twice within": (b'[{"a": {"b": 1, "b": 2}}]', "a key occurs twice"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "not a number": (b"[NaN]", "NaN is not a JSON number"),
    "not UTF-8": (b'"\xff"', "UTF-8"),
    "half a character": (b'{"a": ["\\ud800"]}', "half a character"),
    "half in a key": (b'{"\\uDFFF": 1}', "half a character"),
    "encoded half": (b'"\xed\xa0\x80"', "UTF-8"),
    "endless number": (b"1" + b"0" * 9000, "digits"),
    "nothing": (b"", "Expecting value"),
    "lists of lists": (b"[" + b"[]," * 1_000_000 + b"[]]", "more than 2000000 values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_texts_that_mean_nothing(name):
    text, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_texts_as_they_are():
    whole = '{"a": [1, 2.5, null, true], "b": {"a": "ü \\ud83d\\ude00 \U0001f600"}}'
    expected = {"a": [1, 2.5, None, True], "b": {"a": "ü \U0001f600 \U0001f600"}}
    assert parse_json(whole.encode()) == expected
    assert parse_json(b"\xef\xbb\xbf" + whole.encode()) == expected


def test_files_have_a_largest_size(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b" " * 2**20 + b"1")
    assert read_json(path) == 1
    with pytest.raises(ValueError, match="too large, more than 1 MiB"):
        read_json(path, largest=2**20)
