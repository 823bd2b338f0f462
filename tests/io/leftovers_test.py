"""What stopped runs leave, runs at the same time, and inputs that links lead to."""

import errno
import os
import shutil
import threading
import warnings

import io_samples as samples
import pytest
import safetensors.numpy
from cli_samples import everything
from io_samples import put

from jaxmerge import disk, io
from jaxmerge.disk import Mended
from jaxmerge.io import staging
from jaxmerge.io import write as write_module
from jaxmerge.io.leftovers import mend
from jaxmerge.io.safetensors_writer import SafetensorsWriter
from jaxmerge.io.staging import staged_folder

pytest_plugins = ["io_fixtures"]
MARK = "0123456789ab"


def write(out, text="new"):
    with staged_folder(out, force=True) as folder:
        put(folder / "jaxmerge.json", "{}")
        put(folder / "README.md", text)


def test_what_was_replaced_and_has_no_successor_is_restored(tmp_path):
    put(tmp_path / f".out.{MARK}.old" / "README.md", "old")
    put(tmp_path / f".out.{MARK}.new" / "README.md", "new")
    with pytest.warns(Mended) as said:
        mend(tmp_path / "out")
    assert [str(warning.message) for warning in said] == [
        f"{tmp_path}/out: restored from .out.{MARK}.old, where a stopped run left it",
        f"{tmp_path}/.out.{MARK}.new: removed; a stopped run left it",
    ]
    assert everything(tmp_path) == {"out/README.md": b"old"}


def test_what_has_a_successor_is_removed(tmp_path):
    put(tmp_path / f".out.{MARK}.old" / "README.md", "old")
    put(tmp_path / "out" / "README.md", "new")
    with pytest.warns(Mended, match="removed"):
        mend(tmp_path / "out")
    assert everything(tmp_path) == {"out/README.md": b"new"}


@pytest.mark.parametrize(
    "name",
    [
        *(f".out.{MARK}.newer", f".out2.{MARK}.new", f"out.{MARK}.new", ".out.new"),
        *(f".out.{MARK.upper()}.old", f".out.{MARK}0.old"),
    ],
)
def test_no_other_name_is_a_leftover(name, tmp_path):
    put(tmp_path / name / "thesis.tex")
    mend(tmp_path / "out")
    assert (tmp_path / name / "thesis.tex").exists()


def test_links_and_files_of_such_a_name_are_spared(tmp_path):
    put(tmp_path / "kept" / "thesis.tex")
    (tmp_path / f".out.{MARK}.new").symlink_to(tmp_path / "kept")
    put(tmp_path / f".out.{MARK}.old")
    before = sorted(tmp_path.rglob("*"))
    mend(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_goes_on_is_no_leftover(tmp_path):
    out = tmp_path / "out"
    with staged_folder(out) as first:
        put(first / "README.md", "first")
        write(out, "second")
        shutil.rmtree(out)
        mend(out)
        assert first.exists()
    assert everything(tmp_path) == {"out/README.md": b"first"}


def test_without_locks_nothing_is_touched_but_named(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "fcntl", None)
    put(tmp_path / f".out.{MARK}.old" / "README.md", "old")
    with pytest.warns(Mended, match="rename it to out to have it back, or remove it"):
        mend(tmp_path / "out")
    assert (tmp_path / f".out.{MARK}.old" / "README.md").exists()


def test_the_next_run_says_what_it_mends(tmp_path, adapters, updates):
    put(tmp_path / f".out.{MARK}.new" / "half.safetensors")
    with pytest.warns(Mended, match="removed; a stopped run left it"):
        io.save_peft(tmp_path / "out", updates, like=adapters)
    assert sorted(os.listdir(tmp_path)) == ["in0", "in1", "out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_runs_at_the_same_time_end_with_one_whole_folder(
    exchange, tmp_path, monkeypatch
):
    if not exchange:
        monkeypatch.setattr(disk, "_renameat2", lambda *_: False)
    out, failed = tmp_path / "out", []
    write(out, "before")

    def run(name):
        for _ in range(15):
            try:
                write(out, name * 1000)
            except io.AdapterError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["out"]
    text = everything(out)["README.md"].decode()
    assert len(text) == 1000
    assert len(set(text)) == 1
    assert len(failed) < 45


def test_what_comes_in_at_the_last_moment_is_not_replaced(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(out, "old")
    claim = staging.claim

    def late(folder):
        if folder == out:
            put(out / "thesis.tex", "precious")
        return claim(folder)

    monkeypatch.setattr(staging, "claim", late)
    with pytest.raises(io.AdapterError, match=r"not an adapter: 'thesis\.tex'"):
        write(out)
    assert everything(tmp_path)["out/thesis.tex"] == b"precious"
    assert everything(tmp_path)["out/README.md"] == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_another_run_may_make_the_folder_first(tmp_path, monkeypatch):
    out = tmp_path / "out"
    rename = staging.rename_new
    monkeypatch.setattr(
        staging, "rename_new", lambda *names: (put(out / "README.md"), rename(*names))
    )
    with (
        pytest.raises(io.AdapterError, match="has appeared meanwhile"),
        staged_folder(out) as folder,
    ):
        put(folder / "README.md", "new")
    assert everything(tmp_path) == {"out/README.md": b"x"}


def link_to_the_weights(place):
    (place / "in").mkdir()
    for path in (place / "out").iterdir():
        (place / "in" / path.name).symlink_to(path)


def link_to_one_file(place):
    samples.write(place / "in")
    (place / "in" / samples.SAFE).unlink()
    (place / "in" / samples.SAFE).symlink_to(f"../out/{samples.SAFE}")


def link_through_the_folder(place):
    """A link in the input to a link in the output to a file elsewhere."""
    link_to_one_file(place)
    (place / "out" / samples.SAFE).rename(place / "elsewhere")
    (place / "out" / samples.SAFE).symlink_to(place / "elsewhere")


def link_below_a_linked_folder(place):
    (place / "more").mkdir()
    (place / "more" / "x").symlink_to(place / "out" / samples.CONFIG)
    samples.write(place / "in")
    (place / "in" / "extra").symlink_to(place / "more")


def link_to_the_folder(place):
    (place / "in").symlink_to("out")


@pytest.mark.parametrize(
    "make",
    [
        *(link_to_the_weights, link_to_one_file, link_through_the_folder),
        *(link_below_a_linked_folder, link_to_the_folder),
    ],
)
def test_an_input_that_links_lead_to_the_folder_is_spared(make, tmp_path, updates):
    out = samples.write(tmp_path / "out")
    make(tmp_path)
    before = everything(tmp_path)
    adapters = io.load_peft([tmp_path / "in"])
    own = samples.summed(adapters)
    with pytest.raises(io.AdapterError, match=f"is or holds the input {tmp_path}/in"):
        io.save_peft(out, own, like=adapters, force=True)
    assert everything(tmp_path) == before


def test_links_elsewhere_and_around_are_no_reason(tmp_path):
    samples.write(tmp_path / "out")
    samples.write(tmp_path / "in")
    for name, target in {"up": tmp_path, "self": "self", "gone": "nowhere"}.items():
        (tmp_path / "in" / name).symlink_to(target)
    adapters = io.load_peft([tmp_path / "in"])
    own = samples.summed(adapters)
    io.save_peft(tmp_path / "out", own, like=adapters, force=True)


def test_an_old_folder_that_stays_is_a_warning(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.warns(Mended, match="holds what out was before and cannot be removed"):
        write(tmp_path / "out")
    assert everything(tmp_path)["out/README.md"] == b"new"


def os_error(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def safetensors_error(*_, **__):
    raise safetensors.SafetensorError("I/O error: Disk quota exceeded (os error 122)")


def tensorstore_error(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: ... [OS error 28: No space left on device]")


@pytest.mark.parametrize("fail", [os_error, safetensors_error, tensorstore_error])
@pytest.mark.parametrize("where", ["safetensors", "card", "sync"])
def test_a_full_disk_is_a_plain_message(
    fail, where, tmp_path, adapters, updates, monkeypatch
):
    place, name = {
        "safetensors": (SafetensorsWriter, "write"),
        "card": (write_module, "build_card"),
        "sync": (staging, "sync_tree"),
    }[where]
    monkeypatch.setattr(place, name, fail)
    with pytest.raises(
        io.AdapterError, match=r"out: cannot be written \((No space|Disk quota)"
    ):
        io.save_peft(tmp_path / "out", updates, like=adapters)
    assert sorted(os.listdir(tmp_path)) == ["in0", "in1"]


def test_an_interruption_stays_one(tmp_path):
    try:
        with warnings.catch_warnings(), staged_folder(tmp_path / "out"):
            try:
                os_error()
            except OSError:
                raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        pass
    assert os.listdir(tmp_path) == []
