"""Hostile torch files: their pickles never run and their views stay inside."""

import math
import os
import pickle
import zipfile

import io_samples as samples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmerge import io
from jaxmerge.io.torch_file import TorchFile

pytest_plugins = ["io_fixtures"]


class Exploit:
    """Would run a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


PICKLES = {
    "system": b"cos\nsystem\n(S'touch owned'\ntR.",
    "eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "getattr": b"cbuiltins\ngetattr\n(cos\nS'system'\ntR.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch owned\x85R.",
    "instance": b"(S'touch owned'\nios\nsystem\n.",
    "torch code": b"ctorch._utils\n_rebuild_tensor_v3\n(tR.",
    "numpy": b"cnumpy\nload\n(S'x'\ntR.",
    "dtype attribute": b"cnumpy\ndtype\n(S'O'\ntR.",
    "extension": b"\x82\x01.",
    "empty": b"",
    "garbage": b"\x00\xff\x13not a pickle",
    "a number": b"I7\n.",
    "a list": b"(l.",
    "plain values": b"(dS'base_model.model.fc.lora_A.weight'\nI7\ns.",
    "key not text": b"(dI7\nI7\ns.",
    "no stop": b"(d",
    "bad storage": b"(dS'k'\n(S'storage'\nI1\ntQs.",
    "storage key": b"(dS'k'\n(S'storage'\nctorch\nByteStorage\nI1\nS'c'\nI1\ntQs.",
    "no storage": b"(dS'k'\nctorch._utils\n_rebuild_tensor_v2\n(I0\nI0\n)I1\ntRs.",
    "parameter of nothing": b"(dS'k'\nctorch._utils\n_rebuild_parameter\n(I0\ntRs.",
    "long text": b"\x80\x02X\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("wrap", ["archive", "stream"])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles_never_run(folder, name, wrap, monkeypatch):
    monkeypatch.chdir(folder.parent)
    if wrap == "archive":
        samples.archive(folder, PICKLES[name])
    else:
        (folder / samples.SAFE).unlink()
        (folder / samples.BIN).write_bytes(PICKLES[name] or b"\x00")
    samples.refuse(folder, samples.BIN)
    assert sorted(os.listdir(folder)) == sorted([samples.BIN, samples.CONFIG])
    assert os.listdir(folder.parent) == ["victim"]


@pytest.mark.parametrize("protocol", range(6))
def test_exploits_of_every_protocol(folder, protocol):
    owned = folder.parent / "owned"
    samples.archive(folder, pickle.dumps({"k": Exploit(owned)}, protocol))
    samples.refuse(folder, r"system.*was not run")
    assert not owned.exists()


NESTED = {  # as a key, the first takes 2**60 steps to hash and the second the stack
    "shared": b")" + b"q\x00h\x00\x86" * 60,
    "deep": b")" + b"\x85" * 1_000_000,
}
HASHING = {
    "entry": (b"}", b"K\x01s."),
    "entries": (b"}(", b"K\x01u."),
    "dictionary": (b"(", b"K\x01d."),
    "ordered": (b"ccollections\nOrderedDict\n(((", b"K\x01tttR."),
    "set": (b"\x8f(", b"\x90."),
    "frozen set": (b"(", b"\x91."),
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("hashing", "nested"), [*((name, "shared") for name in HASHING), ("entry", "deep")]
)
def test_pickles_that_hash_nested_tuples(folder, nested, hashing):
    before, after = HASHING[hashing]
    samples.archive(folder, b"\x80\x04" + before + NESTED[nested] + after)
    samples.refuse_in_time(folder, rf"{samples.BIN}: not a complete torch checkpoint")


def test_storage_keys_of_old_streams_are_not_hashed_unseen(folder):
    pickles = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}, {})]
    keys = b"\x80\x02](" + NESTED["shared"] + b"e."
    (folder / samples.SAFE).unlink()
    (folder / samples.BIN).write_bytes(b"".join(pickles) + keys)
    samples.refuse_in_time(folder, "a tuple as the key")


def test_state_dicts_carry_attributes(tmp_path):
    """A state dict of a module holds `_metadata`, which says nothing of its tensors."""
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / samples.BIN)
    assert sorted(TorchFile(tmp_path / samples.BIN).infos) == ["bias", "weight"]


@pytest.fixture
def torch_folder(folder):
    torch = pytest.importorskip("torch")
    tensors = {k: torch.from_numpy(v) for k, v in samples.linear().items()}
    torch.save(tensors, folder / samples.BIN)
    (folder / samples.SAFE).unlink()
    return folder


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_and_flipped_torch_files(torch_folder, legacy):
    torch = pytest.importorskip("torch")
    path = torch_folder / samples.BIN
    if legacy:
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(1, len(whole), 150):
        path.write_bytes(whole[:cut])
        samples.refuse(torch_folder, samples.BIN)
    for _ in range(300):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        samples.load_or_refuse(torch_folder)


SMALL = st.integers(-1, 6)
ANY = SMALL | st.integers(-(2**70), 2**70)


@settings(samples.CALM, max_examples=600)
@given(
    size=st.just(16) | ANY,
    offset=st.integers(-1, 17) | ANY,
    view=st.lists(st.tuples(SMALL, SMALL), max_size=3)
    | st.lists(st.tuples(ANY, ANY), max_size=3),
)
def test_views_never_leave_their_storage(tmp_path_factory, size, offset, view):
    """A tensor is read exactly when every entry lies in its storage of 16 numbers."""
    shape, stride = [n for n, _ in view], [step for _, step in view]
    last = offset + sum((n - 1) * step for n, step in view)
    plain = size == 16 and min([offset, *shape, *stride]) >= 0
    inside = plain and (0 in shape or (last < 16 and math.prod(shape) <= 16))
    folder = tmp_path_factory.mktemp("views")
    numbers = np.arange(16, dtype=np.float32)
    samples.archive(
        folder,
        samples.rebuild(size, offset, shape, stride),
        entries=[("a/data/0", numbers.tobytes())],
    )
    try:
        values = TorchFile(folder / samples.BIN).read(
            "base_model.model.fc.lora_A.weight"
        )
    except io.AdapterError:
        assert not inside or max(shape, default=0) > 6  # numpy's own limit of shapes
        return
    assert inside
    assert values.shape == tuple(shape)
    for place in np.ndindex(*shape) if values.size else ():
        steps = sum(i * step for i, step in zip(place, stride, strict=True))
        assert values[place] == offset + steps


def test_big_endian_archives(tmp_path):
    numbers = np.arange(4, dtype=">f4")
    entries = [("a/data/0", numbers.tobytes()), ("a/byteorder", b"big")]
    samples.archive(tmp_path, samples.rebuild(4, 0, [4], [1]), entries=entries)
    values = TorchFile(tmp_path / samples.BIN).read("base_model.model.fc.lora_A.weight")
    np.testing.assert_array_equal(values, numbers)


def test_old_stream_with_a_wrong_storage_length(torch_folder):
    torch = pytest.importorskip("torch")
    path = torch_folder / samples.BIN
    torch.save({"k": torch.ones(5)}, path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(TorchFile(path).read("k"), np.ones(5))
    whole = path.read_bytes()
    start = len(whole) - 5 * 4 - 8
    assert int.from_bytes(whole[start : start + 8], "little") == 5
    path.write_bytes(whole[:start] + (6).to_bytes(8, "little") + whole[start + 8 :])
    with pytest.raises(io.AdapterError, match="another length than announced"):
        TorchFile(path)


def test_views_inside_their_storage_are_read(tmp_path):
    samples.archive(tmp_path, samples.rebuild(16, 1, [2, 3], [1, 4]), entries=[
        ("a/data/0", np.arange(16, dtype=np.float32).tobytes())
    ])  # fmt: skip
    values = TorchFile(tmp_path / samples.BIN).read("base_model.model.fc.lora_A.weight")
    np.testing.assert_array_equal(values, [[1, 5, 9], [2, 6, 10]])


def test_archives_with_tricks(folder):
    good = samples.rebuild(4, 0, [2, 2], [2, 1])
    data = bytes(16)
    cases = [
        ([("a/data/1", data)], zipfile.ZIP_STORED, "no entry"),
        ([("a/data/0", data[:8])], zipfile.ZIP_STORED, "cut short"),
        ([("a/data/0", data)], zipfile.ZIP_DEFLATED, "compressed"),
        ([("b/data.pkl", good)], zipfile.ZIP_STORED, "not one written by torch.save"),
        ([("a/byteorder", b"middle")], zipfile.ZIP_STORED, "byte order|no entry"),
    ]
    for entries, compression, message in cases:
        samples.archive(folder, good, entries=entries, compression=compression)
        with pytest.raises(io.AdapterError, match=message):
            TorchFile(folder / samples.BIN).read("base_model.model.fc.lora_A.weight")
    samples.archive(
        folder, samples.rebuild(4, 0, [2, 2], [2, 1], key="../../../etc/passwd")
    )
    with pytest.raises(io.AdapterError, match="no entry"):
        TorchFile(folder / samples.BIN).read("base_model.model.fc.lora_A.weight")
