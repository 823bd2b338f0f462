"""Small torch files that took gigabytes or minutes, and names that mean two things."""

import io_samples as samples
import numpy as np
import pytest

from jaxmerge import io
from jaxmerge.io import torch_pickle
from jaxmerge.io.torch_file import TorchFile

pytest_plugins = ["io_fixtures"]


def pickled(*pieces):
    """A pickle of protocol 2 from its instructions."""
    return b"\x80\x02" + b"".join(pieces) + b"."


def short(text):
    return b"X" + len(text).to_bytes(4, "little") + text


A_STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x04tQ"
)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HUGE = b"\x8b" + (2**20).to_bytes(4, "little") + b"\xff" * (2**20 - 1) + b"\x00"
PADDING = b"\x89ccollections\nOrderedDict\n)RtR"
WASTEFUL = {  # each is small, and took gigabytes or minutes
    "bytearray": (b"\x96" + (2**34).to_bytes(8, "little"), "no tensor file has"),
    "text": (b"\x8d" + (2**40).to_bytes(8, "little"), "cut off"),
    "frame": (b"\x95" + (2**40).to_bytes(8, "little") + b"N", "holds a NoneType"),
    "huge shape": (
        b"}X\x01\x00\x00\x00k" + REBUILD + b"(" + A_STORAGE + b"K\x00("
        + HUGE + b"q\x01" + b"h\x01" * 2000 + b"t(" + b"h\x01" * 2001 + b"t"
        + PADDING + b"s",
        "too many digits",
    ),
    "huge text": (b"}I" + b"9" * 4000 + b"\nK\x01s", "a int as the key"),
    "many axes": (
        b"}X\x01\x00\x00\x00k" + REBUILD + b"(" + A_STORAGE + b"K\x00("
        + b"K\x01" * 4000 + b"t(" + b"K\x01" * 4000 + b"t" + PADDING + b"s",
        "impossible shape",
    ),
    "a long list called often": (
        b"(" + b"N" * 100_000 + b"tq\x010"
        + b"ccollections\nOrderedDict\nh\x01R0" * 500,
        "impossible arguments",
    ),
    "a long list copied often": (
        b"](" + b"N" * 100_000 + b"eq\x010"
        + b"ccollections\nOrderedDict\nh\x01\x85R0" * 500,
        "takes 0 positional arguments",
    ),
    "colliding places": (
        b"N" + b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(1, 3000)),
        "a place that no pickle has",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WASTEFUL)
def test_small_pickles_take_little_time_and_memory(folder, name):
    pieces, message = WASTEFUL[name]
    samples.archive(folder, pickled(pieces))
    with samples.within(seconds=3, mebibytes=200):
        samples.refuse(folder, rf"{samples.BIN}.*{message}")


ENDLESS = {
    "marks": b"(" * 30_000,
    "keys": b"}(" + b"".join(short(b"%d" % i) + b"N" for i in range(15_000)) + b"u",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_instructions_are_counted(folder, name, monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MOST_STEPS", 20_000)
    samples.archive(folder, pickled(ENDLESS[name]))
    samples.refuse(folder, rf"{samples.BIN}.*too long for an adapter")


def tensors(count, *, size=4, key="0"):
    """A pickle of some tensors [4, 5] that are all the same part of one storage."""
    storage = A_STORAGE.replace(b"K\x04", b"M" + size.to_bytes(2, "little"))
    one = REBUILD + b"(" + storage + b"K\x00(K\x04K\x05t(K\x05K\x01t" + PADDING
    entries = (short(b"base_model.model.h%d.lora_A.weight" % i) for i in range(count))
    return pickled(b"}(", *(entry + one for entry in entries), b"u")


def test_storages_shared_without_end_are_not_copied(folder):
    samples.archive(folder, tensors(500, size=20), entries=[("a/data/0", bytes(80))])
    size = (folder / samples.BIN).stat().st_size
    assert size > 500 * 80 / 4  # as much as it would take, so that it may be read
    assert len(TorchFile(folder / samples.BIN).infos) == 500
    large = [("a/data/0", bytes(4 * 2**15))]
    one = tensors(500, size=2**15).replace(
        b"(K\x04K\x05t(K\x05K\x01t", b"(M\x00\x80t(K\x01t"
    )
    samples.archive(folder, one, entries=large)
    samples.refuse(folder, "share their storages: 65536000 bytes from a file")


def test_a_slice_reads_no_more_than_itself(folder):
    """The storage is compared with its checksum once, and read part by part."""
    numbers = np.arange(40, dtype=np.float32)
    pickles = samples.rebuild(40, 20, [4, 5], [5, 1])
    samples.archive(folder, pickles, entries=[("a/data/0", numbers.tobytes())])
    file = TorchFile(folder / samples.BIN)
    (key,) = file.infos
    np.testing.assert_array_equal(file.read(key), numbers[20:].reshape(4, 5))
    whole = (folder / samples.BIN).read_bytes()
    (folder / samples.BIN).write_bytes(
        whole.replace(
            numbers[:1].tobytes() + numbers[1:2].tobytes(),
            bytes(3) + b"\x01" + numbers[1:2].tobytes(),
        )
    )
    with pytest.raises(io.AdapterError, match=r"adapter_model\.bin.*Bad CRC"):
        TorchFile(folder / samples.BIN).read(key)


def test_names_that_occur_twice(folder):
    twice = pickled(b"}(", short(b"k"), b"N", short(b"k"), b"N", b"u")
    samples.archive(folder, twice)
    samples.refuse(folder, "two entries of the name 'k'")
    with pytest.warns(UserWarning, match="Duplicate"):
        samples.archive(folder, b"}.", entries=[("a/data.pkl", b"}.")])
    samples.refuse(folder, "names an entry twice")


def test_names_that_a_terminal_would_obey(folder):
    samples.archive(folder, samples.rebuild(4, 0, [4], [1]).replace(b"fc", b"\\x1b[2J"))
    samples.refuse(folder, "a name that cannot be shown")
    samples.archive(folder, b"c\x1b[2Jos\nsystem\n.")
    samples.refuse(folder, r"asks for \\x1b\[2Jos.system")


def test_archives_of_too_many_entries(folder):
    many = [(f"a/data/{'x' * 60}{i}", b"") for i in range(40_000)]
    samples.archive(folder, b"}.", entries=many)
    with samples.within(seconds=3, mebibytes=200):
        samples.refuse(folder, "too many entries")
