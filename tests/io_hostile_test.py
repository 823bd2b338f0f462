"""Hostile input: every file an attacker or a bad disk can make is an AdapterError."""

import json
import math
import os
import pickle
import zipfile

import io_samples as samples
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxmerge import io
from jaxmerge.io.torch_file import TorchFile

CALM = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SAFE, BIN, CONFIG = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter_config.json",
)


@pytest.fixture
def folder(tmp_path):
    return samples.write(tmp_path / "victim")


def load_or_refuse(folder, **options):
    """Loads finite values or raises AdapterError; anything else is a failure."""
    before = sorted(folder.parent.rglob("*"))
    try:
        adapters = io.load_peft([folder], heads="keep", **options)
    except io.AdapterError as error:
        adapters, message = None, str(error)
    assert sorted(folder.parent.rglob("*")) == before
    if adapters is None:
        assert 10 < len(message) < 3000
        return None
    for stack in adapters.stacks.values():
        assert np.isfinite(stack.b).all()
        assert np.isfinite(stack.a).all()
    return adapters


def refuse(folder, match, **options):
    with pytest.raises(io.AdapterError, match=match):
        io.load_peft([folder], heads="keep", **options)


@CALM
@given(data=st.data())
def test_truncated_safetensors(folder, data):
    whole = (folder / SAFE).read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    (folder / SAFE).write_bytes(whole[:cut])
    refuse(folder, "empty|not a complete")
    (folder / SAFE).write_bytes(whole)


@CALM
@given(data=st.data())
def test_bit_flips_in_safetensors(folder, data):
    whole = (folder / SAFE).read_bytes()
    broken = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) * 8 - 1), max_size=4)):
        broken[place // 8] ^= 1 << place % 8
    (folder / SAFE).write_bytes(broken)
    load_or_refuse(folder)
    (folder / SAFE).write_bytes(whole)


def header_file(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


KEY_A = "base_model.model.h.0.fc.lora_A.weight"
KEY_B = "base_model.model.h.0.fc.lora_B.weight"
F32 = {"dtype": "F32"}
LYING_HEADERS = {
    "huge header": header_file({}, length=2**63 - 1),
    "largest header": header_file({}, length=2**64 - 1),
    "header beyond the file": header_file({}, length=10**6),
    "no header": header_file(b""),
    "not json": header_file(b"{nonsense"),
    "a list": header_file([1, 2]),
    "deep": header_file(b"[" * 100_000),
    "not text": header_file(b"\xff\xfe\xfa"),
    "data missing": header_file(
        {KEY_A: F32 | {"shape": [4, 5], "data_offsets": [0, 80]}}
    ),
    "wrong size": header_file(
        {KEY_A: F32 | {"shape": [4, 5], "data_offsets": [0, 8]}}, bytes(8)
    ),
    "overflow": header_file(
        {KEY_A: F32 | {"shape": [2**40, 2**40], "data_offsets": [0, 0]}}
    ),
    "backwards": header_file(
        {KEY_A: F32 | {"shape": [1, 1], "data_offsets": [8, 4]}}, bytes(8)
    ),
    "overlap": header_file(
        {
            KEY_A: F32 | {"shape": [1, 2], "data_offsets": [0, 8]},
            KEY_B: F32 | {"shape": [2, 1], "data_offsets": [4, 12]},
        },
        bytes(12),
    ),
    "negative": header_file({KEY_A: F32 | {"shape": [-1, 5], "data_offsets": [0, 20]}}),
    "unknown dtype": header_file(
        {KEY_A: {"dtype": "F3", "shape": [1], "data_offsets": [0, 1]}}, bytes(1)
    ),
    "quantised": header_file(
        {
            KEY_A: {"dtype": "F8_E4M3", "shape": [4, 5], "data_offsets": [0, 20]},
            KEY_B: {"dtype": "F8_E4M3", "shape": [6, 4], "data_offsets": [20, 44]},
        },
        bytes(44),
    ),
    "empty": header_file({}),
    "scalar": header_file(
        {KEY_A: F32 | {"shape": [], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "no columns": header_file(
        {
            KEY_A: F32 | {"shape": [4, 0], "data_offsets": [0, 0]},
            KEY_B: F32 | {"shape": [6, 4], "data_offsets": [0, 96]},
        },
        bytes(96),
    ),
}


@pytest.mark.parametrize("name", LYING_HEADERS)
def test_headers_that_lie(folder, name):
    (folder / SAFE).write_bytes(LYING_HEADERS[name])
    refuse(folder, SAFE)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(max_size=6), children, max_size=3)
    ),
    max_leaves=6,
)
KNOWN_KEYS = st.sampled_from(
    [
        "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
        "fan_in_fan_out", "bias", "lora_bias", "init_lora_weights", "modules_to_save",
        "base_model_name_or_path", "revision", "task_type", "init_r", "use_dora",
        "target_modules", "layers_to_transform", "no_such_key",
    ]
)  # fmt: skip


@CALM
@given(changes=st.dictionaries(KNOWN_KEYS, JSON_VALUES, min_size=1, max_size=3))
def test_configs_with_any_value(folder, changes):
    (folder / CONFIG).write_text(json.dumps({**samples.BASE, **changes}))
    adapters = load_or_refuse(folder, assume_alpha=8)
    if adapters is not None:
        (scale,) = adapters.sources[0].scales.values()
        assert np.isfinite(scale)
        assert scale != 0


@CALM
@given(text=st.text(max_size=40) | st.binary(max_size=40))
def test_configs_of_any_content(folder, text):
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (folder / CONFIG).write_bytes(raw)
    refuse(folder, CONFIG)


BAD_CONFIGS = {
    "text rank": ('{"r": "8"}', "r must be a positive integer, found '8'"),
    "negative rank": ('{"r": -1}', "positive integer, found -1"),
    "zero rank": ('{"r": 0}', "positive integer, found 0"),
    "true rank": ('{"r": true}', "positive integer, found True"),
    "float rank": ('{"r": 4.0}', r"positive integer, found 4\.0"),
    "null alpha": ('{"lora_alpha": null}', "assume_alpha"),
    "nan alpha": ('{"lora_alpha": NaN}', "NaN is not a JSON number"),
    "infinite alpha": ('{"lora_alpha": 1e999}', "finite"),
    "endless alpha": ('{"lora_alpha": 1%s}' % ("0" * 400), "finite"),
    "more digits than python reads": ('{"lora_alpha": 1%s}' % ("0" * 9000), "JSON"),
    "text alpha": ('{"lora_alpha": "16"}', "must be a number, found '16'"),
    "zero alpha": ('{"lora_alpha": 0}', "not zero"),
    "list pattern": ('{"rank_pattern": [1]}', "rank_pattern must be an object"),
    "text in pattern": ('{"rank_pattern": {"fc": "8"}}', "positive integer"),
    "bad expression": ('{"alpha_pattern": {"(": 8}}', "regular expression"),
    "nan in pattern": ('{"alpha_pattern": {"fc": null}}', "must be a number"),
    "flag": ('{"use_rslora": "yes"}', "true or false"),
    "base": ('{"base_model_name_or_path": 7}', "must be a string"),
    "saved": ('{"modules_to_save": {"a": 1}}', "list of names"),
    "twice": ('{"r": 4, "r": 8}', "occurs twice"),
    "a list": ("[]", "expected a JSON object, found list"),
    "a number": ("7", "expected a JSON object, found int"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "nothing": ("", "empty"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_configs_with_wrong_types(folder, name):
    text, message = BAD_CONFIGS[name]
    if text.startswith("{") and name != "twice":
        base = json.dumps(samples.BASE)
        key = text[2 : text.index('"', 2)]
        kept = {k: v for k, v in json.loads(base).items() if k != key}
        text = f"{text[:-1]}, {json.dumps(kept)[1:]}"
    (folder / CONFIG).write_text(text)
    refuse(folder, message)
    refuse(folder, CONFIG)


class Exploit:
    """Would run a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def archive(folder, pickled, *, entries=(), compression=zipfile.ZIP_STORED):
    (folder / SAFE).unlink(missing_ok=True)
    with zipfile.ZipFile(folder / BIN, "w", compression) as file:
        file.writestr("a/data.pkl", pickled)
        for name, data in entries:
            file.writestr(name, data)


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
        archive(folder, PICKLES[name])
    else:
        (folder / SAFE).unlink()
        (folder / BIN).write_bytes(PICKLES[name] or b"\x00")
    refuse(folder, BIN)
    assert sorted(os.listdir(folder)) == sorted([BIN, CONFIG])
    assert os.listdir(folder.parent) == ["victim"]


@pytest.mark.parametrize("protocol", range(6))
def test_exploits_of_every_protocol(folder, protocol):
    owned = folder.parent / "owned"
    archive(folder, pickle.dumps({"k": Exploit(owned)}, protocol))
    refuse(folder, r"system.*was not run")
    assert not owned.exists()


@pytest.fixture
def torch_folder(folder):
    torch = pytest.importorskip("torch")
    tensors = {k: torch.from_numpy(v) for k, v in samples.linear().items()}
    torch.save(tensors, folder / BIN)
    (folder / SAFE).unlink()
    return folder


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_and_flipped_torch_files(torch_folder, legacy):
    torch = pytest.importorskip("torch")
    path = torch_folder / BIN
    if legacy:
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(1, len(whole), 150):
        path.write_bytes(whole[:cut])
        refuse(torch_folder, BIN)
    for _ in range(300):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        load_or_refuse(torch_folder)


def rebuild(storage_size, offset, shape, stride, key="0"):
    """A pickle of one tensor with any numbers in it."""

    def number(n):
        return b"I%d\n" % n

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    pieces = [
        b"(dS'base_model.model.fc.lora_A.weight'\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        b"(S'storage'\nctorch\nFloatStorage\nS'" + key.encode() + b"'\nS'cpu'\n",
        number(storage_size) + b"tQ" + number(offset),
        numbers(shape) + numbers(stride),
        b"I00\nccollections\nOrderedDict\n(tRtRs.",
    ]
    return b"".join(pieces)


SMALL = st.integers(-1, 6)
ANY = SMALL | st.integers(-(2**70), 2**70)


@settings(CALM, max_examples=600)
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
    archive(
        folder,
        rebuild(size, offset, shape, stride),
        entries=[("a/data/0", numbers.tobytes())],
    )
    try:
        values = TorchFile(folder / BIN).read("base_model.model.fc.lora_A.weight")
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
    archive(tmp_path, rebuild(4, 0, [4], [1]), entries=entries)
    values = TorchFile(tmp_path / BIN).read("base_model.model.fc.lora_A.weight")
    np.testing.assert_array_equal(values, numbers)


def test_old_stream_with_a_wrong_storage_length(torch_folder):
    torch = pytest.importorskip("torch")
    path = torch_folder / BIN
    torch.save({"k": torch.ones(5)}, path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(TorchFile(path).read("k"), np.ones(5))
    whole = path.read_bytes()
    start = len(whole) - 5 * 4 - 8
    assert int.from_bytes(whole[start : start + 8], "little") == 5
    path.write_bytes(whole[:start] + (6).to_bytes(8, "little") + whole[start + 8 :])
    with pytest.raises(io.AdapterError, match="another length than announced"):
        TorchFile(path)


def test_views_inside_their_storage_are_read(tmp_path):
    archive(tmp_path, rebuild(16, 1, [2, 3], [1, 4]), entries=[
        ("a/data/0", np.arange(16, dtype=np.float32).tobytes())
    ])  # fmt: skip
    values = TorchFile(tmp_path / BIN).read("base_model.model.fc.lora_A.weight")
    np.testing.assert_array_equal(values, [[1, 5, 9], [2, 6, 10]])


def test_archives_with_tricks(folder):
    good = rebuild(4, 0, [2, 2], [2, 1])
    data = bytes(16)
    cases = [
        ([("a/data/1", data)], zipfile.ZIP_STORED, "no entry"),
        ([("a/data/0", data[:8])], zipfile.ZIP_STORED, "cut short"),
        ([("a/data/0", data)], zipfile.ZIP_DEFLATED, "compressed"),
        ([("b/data.pkl", good)], zipfile.ZIP_STORED, "not one written by torch.save"),
        ([("a/byteorder", b"middle")], zipfile.ZIP_STORED, "byte order|no entry"),
    ]
    for entries, compression, message in cases:
        archive(folder, good, entries=entries, compression=compression)
        with pytest.raises(io.AdapterError, match=message):
            TorchFile(folder / BIN).read("base_model.model.fc.lora_A.weight")
    archive(folder, rebuild(4, 0, [2, 2], [2, 1], key="../../../etc/passwd"))
    with pytest.raises(io.AdapterError, match="no entry"):
        TorchFile(folder / BIN).read("base_model.model.fc.lora_A.weight")


NAMES = [
    "..",
    "../../x",
    "/etc/passwd",
    "a/../b",
    "~root",
    "C:\\x",
    "nul\x00",
    "\n",
    "%s",
]


@pytest.mark.parametrize("name", NAMES)
def test_module_names_never_become_paths(tmp_path, name):
    place = tmp_path / "deep" / "place"
    folder = samples.write(place / "in", samples.linear(name))
    adapters = io.load_peft([folder])
    assert list(adapters.stacks) == [name]
    updates = {name: samples.concatenated(adapters.stacks[name])}
    before = sorted(tmp_path.rglob("*"))
    io.save_peft(place / "out", updates, like=adapters, card="x")
    io.save_orbax(place / "ckpt", adapters)
    new = [p for p in tmp_path.rglob("*") if p not in before]
    assert all(
        p.is_relative_to(place / "out") or p.is_relative_to(place / "ckpt") for p in new
    )
    assert list(io.load_peft([place / "out"]).stacks) == [name]
    assert list(io.load_orbax(place / "ckpt").stacks) == [name]


@CALM
@given(name=st.text(min_size=1, max_size=20).filter(lambda s: s.isprintable()))
def test_any_module_name_survives_or_is_refused(tmp_path_factory, name):
    place = tmp_path_factory.mktemp("names")
    adapters = load_or_refuse(samples.write(place / "in", samples.linear(name)))
    if adapters is None:
        return
    updates = {m: samples.concatenated(s) for m, s in adapters.stacks.items()}
    io.save_peft(place / "out", updates, like=adapters, ragged=True)
    assert list(io.load_peft([place / "out"]).stacks) == [name]


def test_links_and_special_files(folder):
    real = folder / SAFE
    real.rename(folder.parent / "weights")
    real.symlink_to("../weights")  # as in the Hub's cache
    assert io.load_peft([folder]).stacks
    real.unlink()
    real.symlink_to("../nowhere")
    refuse(folder, "symbolic link to nothing")
    real.unlink()
    real.symlink_to(SAFE)
    refuse(folder, "cannot be read")
    real.unlink()
    real.mkdir()
    refuse(folder, "not a regular file")
    real.rmdir()
    os.mkfifo(real)
    refuse(folder, "not a regular file")
    real.unlink()
    real.symlink_to("/dev/zero")
    refuse(folder, "not a regular file")


def test_pointers_empty_files_and_wrong_kinds(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in (SAFE, CONFIG):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(pointer)
        refuse(folder, rf"{name}.*git lfs pull")
        (folder / name).write_bytes(b"")
        refuse(folder, rf"{name}.*empty")
        (folder / name).write_bytes(kept)
    (folder / CONFIG).write_bytes(b" " * (16 * 2**20 + 1))
    refuse(folder, "too large")
    (folder / CONFIG).unlink()
    refuse(folder, "no adapter_config.json")


@pytest.mark.parametrize("path", ["nul\x00byte", "x" * 5000])
def test_impossible_paths(path):
    refuse(path, "no such folder|not a usable path")
