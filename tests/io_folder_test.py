"""The output folder: shown only when whole, nothing precious replaced."""

import os
import stat

import io_samples as samples
import pytest
import safetensors.numpy

from jaxmerge import io
from jaxmerge.io import write as write_module
from jaxmerge.io.staging import staged_folder

pytest_plugins = ["io_fixtures"]


def test_nothing_is_overwritten_without_force(tmp_path, adapters, updates):
    io.save_peft(tmp_path / "out", updates, like=adapters, rank=2)
    before = samples.config_of(tmp_path / "out")
    with pytest.raises(io.AdapterError, match="exists already"):
        io.save_peft(tmp_path / "out", updates, like=adapters)
    assert samples.config_of(tmp_path / "out") == before
    (tmp_path / "out" / "stale.txt").write_text("old")
    io.save_peft(tmp_path / "out", updates, like=adapters, force=True)
    assert samples.config_of(tmp_path / "out")["r"] == 6
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert sorted(os.listdir(tmp_path)) == ["in0", "in1", "out"]


def test_force_replaces_nothing_but_adapters(tmp_path, adapters, updates):
    def save(out):
        io.save_peft(out, updates, like=adapters, force=True)

    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("precious")
    file = tmp_path / "file"
    file.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(thesis)
    for place, reason in (
        (thesis, "not an adapter"),
        (file, "not a folder"),
        (link, "not a folder"),
        (tmp_path / "in0", "input"),
    ):
        with pytest.raises(io.AdapterError, match=reason):
            save(place)
    assert (thesis / "chapter1.tex").read_text() == "precious"
    assert file.read_text() == "precious"
    assert io.load_peft([tmp_path / "in0"]).stacks
    (thesis / "chapter1.tex").rename(tmp_path / "chapter1.tex")
    save(thesis)  # an empty folder may be filled


def test_force_spares_a_folder_that_holds_an_input(tmp_path, updates, adapters):
    whole = tmp_path / "runs"
    whole.mkdir()
    (tmp_path / "in0").rename(whole / "in0")
    (whole / "jaxmerge.json").write_text("{}")
    moved = io.load_peft([whole / "in0"])
    own = samples.summed(moved)
    with pytest.raises(io.AdapterError, match="is or holds the input"):
        io.save_peft(whole, own, like=moved, force=True)
    assert io.load_peft([whole / "in0"]).stacks


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_no_trace(tmp_path, adapters, updates, monkeypatch, force):
    out = tmp_path / "deep" / "er" / "out"
    if force:
        io.save_peft(out, updates, like=adapters, rank=2)
    before = sorted(tmp_path.rglob("*"))

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(write_module, "build_card", fail)
    with pytest.raises(KeyboardInterrupt):
        io.save_peft(out, updates, like=adapters, force=force)
    assert sorted(tmp_path.rglob("*")) == before
    if force:
        assert samples.config_of(out)["r"] == 2


def test_a_write_that_reads_back_differently_is_not_shown(
    tmp_path, adapters, updates, monkeypatch
):
    save = safetensors.numpy.save_file

    def corrupt(tensors, path, **kwargs):
        save({key: value + 1 for key, value in tensors.items()}, path, **kwargs)

    monkeypatch.setattr(safetensors.numpy, "save_file", corrupt)
    with pytest.raises(RuntimeError, match="does not read back"):
        io.save_peft(tmp_path / "out", updates, like=adapters)
    assert sorted(os.listdir(tmp_path)) == ["in0", "in1"]


def test_rename_failure_restores_the_old_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "jaxmerge.json").write_text("old")
    rename = type(out).rename

    def fail(self, target):
        if self.name.endswith(".new"):
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(type(out), "rename", fail)
    with (
        pytest.raises(io.AdapterError, match="no space left"),
        staged_folder(out, force=True) as folder,
    ):
        (folder / "jaxmerge.json").write_text("new")
    assert (out / "jaxmerge.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_clear_error(tmp_path, adapters, updates):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(io.AdapterError, match="cannot be written"):
        io.save_peft(closed / "out", updates, like=adapters)


def test_a_file_as_parent_is_a_clear_error(tmp_path, adapters, updates):
    (tmp_path / "file").write_text("x")
    with pytest.raises(io.AdapterError, match="cannot be written"):
        io.save_peft(tmp_path / "file" / "out", updates, like=adapters)


def test_files_have_ordinary_permissions(tmp_path, adapters, updates):
    io.save_peft(tmp_path / "out", updates, like=adapters)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1
