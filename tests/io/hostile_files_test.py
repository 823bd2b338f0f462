"""Hostile folders, safetensors files and names of modules."""

import os

import io_samples as samples
import pytest
from hypothesis import given
from hypothesis import strategies as st
from io_samples import header_file

from jaxmerge import io

pytest_plugins = ["io_fixtures"]


@samples.CALM
@given(data=st.data())
def test_truncated_safetensors(folder, data):
    whole = (folder / samples.SAFE).read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    (folder / samples.SAFE).write_bytes(whole[:cut])
    samples.refuse(folder, "empty|not a complete")
    (folder / samples.SAFE).write_bytes(whole)


@samples.CALM
@given(data=st.data())
def test_bit_flips_in_safetensors(folder, data):
    whole = (folder / samples.SAFE).read_bytes()
    broken = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) * 8 - 1), max_size=4)):
        broken[place // 8] ^= 1 << place % 8
    (folder / samples.SAFE).write_bytes(broken)
    samples.load_or_refuse(folder)
    (folder / samples.SAFE).write_bytes(whole)


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
        {samples.KEY_A: F32 | {"shape": [4, 5], "data_offsets": [0, 80]}}
    ),
    "wrong size": header_file(
        {samples.KEY_A: F32 | {"shape": [4, 5], "data_offsets": [0, 8]}}, bytes(8)
    ),
    "overflow": header_file(
        {samples.KEY_A: F32 | {"shape": [2**40, 2**40], "data_offsets": [0, 0]}}
    ),
    "backwards": header_file(
        {samples.KEY_A: F32 | {"shape": [1, 1], "data_offsets": [8, 4]}}, bytes(8)
    ),
    "overlap": header_file(
        {
            samples.KEY_A: F32 | {"shape": [1, 2], "data_offsets": [0, 8]},
            samples.KEY_B: F32 | {"shape": [2, 1], "data_offsets": [4, 12]},
        },
        bytes(12),
    ),
    "negative": header_file(
        {samples.KEY_A: F32 | {"shape": [-1, 5], "data_offsets": [0, 20]}}
    ),
    "unknown dtype": header_file(
        {samples.KEY_A: {"dtype": "F3", "shape": [1], "data_offsets": [0, 1]}}, bytes(1)
    ),
    "quantised": header_file(
        {samples.KEY_A: {"dtype": "F4", "shape": [4, 2], "data_offsets": [0, 4]}},
        bytes(4),
    ),
    "empty": header_file({}),
    "scalar": header_file(
        {samples.KEY_A: F32 | {"shape": [], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "no columns": header_file(
        {
            samples.KEY_A: F32 | {"shape": [4, 0], "data_offsets": [0, 0]},
            samples.KEY_B: F32 | {"shape": [6, 4], "data_offsets": [0, 96]},
        },
        bytes(96),
    ),
}


@pytest.mark.parametrize("name", LYING_HEADERS)
def test_headers_that_lie(folder, name):
    (folder / samples.SAFE).write_bytes(LYING_HEADERS[name])
    samples.refuse(folder, samples.SAFE)


NAMES = [
    "..",
    "../../x",
    "/etc/passwd",
    "a/../b",
    "~root",
    "C:\\x",
    "%s",
]
UNSHOWABLE = ["nul\x00", "\n", "\x1b[2Jfc", "\x9b2J", "fc\u202ecb", "a\rb"]


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


@pytest.mark.parametrize("name", UNSHOWABLE)
def test_names_that_a_terminal_would_obey_are_refused(tmp_path, name):
    folder = samples.write(tmp_path / "in", samples.linear(name))
    samples.refuse(folder, "a name that cannot be shown")


@samples.CALM
@given(name=st.text(min_size=1, max_size=20).filter(lambda s: s.isprintable()))
def test_any_module_name_survives_or_is_refused(tmp_path_factory, name):
    place = tmp_path_factory.mktemp("names")
    adapters = samples.load_or_refuse(samples.write(place / "in", samples.linear(name)))
    if adapters is None:
        return
    updates = samples.summed(adapters)
    io.save_peft(place / "out", updates, like=adapters, ragged=True)
    assert list(io.load_peft([place / "out"]).stacks) == [name]


def test_links_and_special_files(folder):
    real = folder / samples.SAFE
    real.rename(folder.parent / "weights")
    real.symlink_to("../weights")  # as in the Hub's cache
    assert io.load_peft([folder]).stacks
    real.unlink()
    real.symlink_to("../nowhere")
    samples.refuse(folder, "symbolic link to nothing")
    real.unlink()
    real.symlink_to(samples.SAFE)
    samples.refuse(folder, "cannot be read")
    real.unlink()
    real.mkdir()
    samples.refuse(folder, "not a regular file")
    real.rmdir()
    os.mkfifo(real)
    samples.refuse(folder, "not a regular file")
    real.unlink()
    real.symlink_to("/dev/zero")
    samples.refuse(folder, "not a regular file")


def test_pointers_empty_files_and_wrong_kinds(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in (samples.SAFE, samples.CONFIG):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(pointer)
        samples.refuse(folder, rf"{name}.*git lfs pull")
        (folder / name).write_bytes(b"")
        samples.refuse(folder, rf"{name}.*empty")
        (folder / name).write_bytes(kept)
    (folder / samples.CONFIG).write_bytes(b" " * (16 * 2**20 + 1))
    samples.refuse(folder, "too large")
    (folder / samples.CONFIG).unlink()
    samples.refuse(folder, "no adapter_config.json")


@pytest.mark.parametrize("path", ["nul\x00byte", "x" * 5000])
def test_impossible_paths(path):
    samples.refuse(path, "no such folder|not a usable path|a path with control")
