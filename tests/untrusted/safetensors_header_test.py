"""A header has one reading, the one of the safetensors library, or is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy
from io_samples import header_file

from jaxmerge.untrusted import safetensors_header
from jaxmerge.untrusted.safetensors_header import TensorEntry


def read_header(path):
    with path.open("rb") as file:
        return safetensors_header.read_header(file)


def entry(start, stop, shape=None, dtype="U8"):
    shape = [stop - start] if shape is None else shape
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [start, stop]})


def write(path, text, data=b""):
    path.write_bytes(header_file(text.encode(), data))
    return path


def table(**entries):
    return "{" + ",".join(f'"{key}":{text}' for key, text in entries.items()) + "}"


DATA = bytes(8)
REFUSED = {
    "tensor twice": (f'{{"a":{entry(0, 8)},"a":{entry(0, 8)}}}', "a key occurs twice"),
    "tensor twice, spelled otherwise": (
        f'{{"a":{entry(0, 8)},"\\u0061":{entry(0, 8)}}}',
        "a key occurs twice",
    ),
    "field twice": (
        '{"a":{"dtype":"U8","shape":[8],"shape":[8],"data_offsets":[0,8]}}',
        "a key occurs twice",
    ),
    "metadata twice": (
        f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{entry(0, 8)}}}',
        "a key occurs twice",
    ),
    "one place for two": (table(a=entry(0, 8), b=entry(0, 8)), "overlaps another"),
    "a gap": (table(a=entry(0, 2), b=entry(4, 8)), "overlaps another, or leaves a gap"),
    "bytes left over": (table(a=entry(0, 4)), "bytes are announced"),
    "bytes missing": (table(a=entry(0, 16)), "bytes are announced"),
    "another size": (table(a=entry(0, 8, [9])), "another size than its shape"),
    "backwards": (table(a=entry(8, 0, [8])), "another size"),
    "negative": (table(a=entry(0, 8, [-8])), "mean nothing"),
    "true": (table(a=entry(0, 8, [True, 8])), "mean nothing"),
    "huge": (table(a=entry(0, 8, [2**60, 0])), "mean nothing"),
    "many axes": (table(a=entry(0, 8, [1] * 40)), "mean nothing"),
    "three ends": (
        '{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,4,8]}}',
        "mean nothing",
    ),
    "dtype": (table(a=entry(0, 8, dtype="F7")), "unknown dtype"),
    "lowercase dtype": (table(a=entry(0, 8, dtype="u8")), "unknown dtype"),
    "one more field": (
        '{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":1}}',
        "no dtype, shape and place",
    ),
    "a number": ('{"a":7}', "no dtype, shape and place"),
    "half a name": (f'{{"\\ud800":{entry(0, 8)}}}', "half a character"),
    "escape code": (f'{{"\\u001b[2J":{entry(0, 8)}}}', "cannot be shown"),
    "metadata not text": (
        f'{{"__metadata__":{{"a":1}},"a":{entry(0, 8)}}}',
        "not a table of texts",
    ),
    "a list": ("[1]", "not JSON"),
    "padding first": (" " + table(a=entry(0, 8)), "not JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_headers_with_another_reading(tmp_path, name):
    text, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        read_header(write(tmp_path / "x", text, DATA))


def test_headers_of_the_library(tmp_path):
    tensors = {
        "a": np.arange(6.0).reshape(2, 3),
        "empty": np.zeros((0, 4), np.int8),
        "scalar": np.array(3, np.float16),
        "ü": np.array([True]),
    }
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    whole = path.read_bytes()
    for key, value in tensors.items():
        found = header.tensors[key]
        assert found.shape == value.shape
        assert whole[found.start : found.stop] == value.tobytes()
    assert isinstance(header.tensors["a"], TensorEntry)


def test_padding_behind_the_header_is_part_of_the_format(tmp_path):
    text = table(a=entry(0, 8)) + " " * 13
    assert read_header(write(tmp_path / "x", text, DATA)).tensors["a"].shape == (8,)


def test_tensors_are_counted_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_header, "MOST_TENSORS", 3)
    monkeypatch.setattr(safetensors_header, "parse_json", None)
    text = table(**{f"k{i}": entry(0, 0) for i in range(4)})
    with pytest.raises(ValueError, match="holds more than 3 tensors"):
        read_header(write(tmp_path / "x", text))


def test_long_headers_are_not_read(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write((2**27).to_bytes(8, "little"))
        file.truncate(2**27 + 8)  # a hole, which takes no space
    with pytest.raises(ValueError, match="longer than 40 MiB"):
        read_header(path)
