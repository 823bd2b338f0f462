"""Files of images and texts that ended in an uncaught error, or took gigabytes."""

import io
import zipfile

import numpy as np
import pytest

from jaxmerge.models import hub
from jaxmerge.refusals import Refusal
from jaxmerge.tasks.images import read_images
from jaxmerge.tasks.texts import read_texts


def npy(value):
    out = io.BytesIO()
    np.save(out, value)
    return out.getvalue()


GOOD = npy(np.zeros((2, 2, 2, 3), np.uint8))
ENTRIES = {
    "no array": ({"images.npy": b"plain bytes"}, "no array as numpy.savez writes it"),
    "a name with codes": ({"ima\x1b[2J.npy": GOOD}, r"it holds 'ima\\x1b\[2J'"),
    "a header that is cut": ({"images.npy": GOOD[:60]}, "EOF|expected|Cannot"),
    "a header that is no text": (
        {"images.npy": GOOD.replace(b"(2, 2, 2, 3)", b"(2, (2, 2, 3")},
        "cars.npz",
    ),
    "a huge shape": (
        {"images.npy": GOOD.replace(b"(2, 2, 2, 3), }", b"(9999999, 99, 99, 3), }")},
        "cars.npz",
    ),
    "objects": ({"images.npy": npy(np.array([None]))}, "allow_pickle"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_archives_of_images_that_mean_nothing(tmp_path, name):
    entries, message = ENTRIES[name]
    path = tmp_path / "cars.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    with pytest.raises(Refusal, match=message):
        read_images(path, size=2, channels=3)


def test_archives_that_unpack_without_end(tmp_path):
    path = tmp_path / "cars.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(2**27))
    assert path.stat().st_size < 2**18
    with pytest.raises(Refusal, match="unpacks to 134217728 bytes"):
        read_images(path, size=2, channels=3)


def test_an_entry_that_is_there_twice(tmp_path):
    path = tmp_path / "cars.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", GOOD)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("images.npy", GOOD)
    with pytest.raises(Refusal, match="names an entry twice"):
        read_images(path, size=2, channels=3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a", "text": "b"}', "a key occurs twice"),
        (b'{"te\\ud800xt": "a"}', "half a character"),
        (b'{"text": "\\ud800"}', "half a character"),
        (b'{"te\\u001bxt": "a"}', r"found te\\x1bxt"),
        (b'{"text": NaN}', "NaN is not a JSON number"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_lines_of_texts_that_mean_nothing(tmp_path, line, message):
    path = tmp_path / "cars.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(Refusal, match=message):
        read_texts(path)


def test_a_base_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="nothing: no such folder"):
        hub.read_tensors(tmp_path / "nothing")
