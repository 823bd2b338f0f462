"""The output folder: shown only when whole, nothing precious replaced."""

import os
import stat

import io_samples as samples
import jax.numpy as jnp
import numpy as np
import pytest
from io_samples import put

import jaxmerge as jm
from jaxmerge import io
from jaxmerge.io import write as write_module
from jaxmerge.io.safetensors_writer import SafetensorsWriter
from jaxmerge.io.staging import staged_folder
from jaxmerge.models import hub

pytest_plugins = ["io_fixtures"]


def test_nothing_is_overwritten_without_force(tmp_path, adapters, updates):
    io.save_peft(tmp_path / "out", updates, like=adapters, rank=2)
    before = samples.config_of(tmp_path / "out")
    with pytest.raises(io.AdapterError, match="exists already"):
        io.save_peft(tmp_path / "out", updates, like=adapters)
    assert samples.config_of(tmp_path / "out") == before
    io.save_peft(tmp_path / "out", updates, like=adapters, heads="keep", force=True)
    assert samples.config_of(tmp_path / "out")["r"] == 6
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


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint-500/optimizer.pt", "training_args.bin", "heads/mine.npy"),
        *("heads/cars.safetensors", "delta.safetensors", "leaves/d/0", "a*.bin"),
        *("README.md.orig", "adapter_config.json/x", "statistics.json"),
    ],
)
def test_force_spares_an_adapter_folder_with_other_files(
    name, tmp_path, adapters, updates
):
    out = samples.write(tmp_path / "out")
    if name.startswith("adapter_config"):
        (out / "adapter_config.json").unlink()
        put(out / "jaxmerge.json", "{}")
    put(out / name, "precious")
    with pytest.raises(io.AdapterError, match="files that are not an adapter") as error:
        io.save_peft(out, updates, like=adapters, force=True)
    assert repr(name) in str(error.value)
    assert "move them away or choose another folder" in str(error.value)
    assert (out / name).read_text() == "precious"


def test_force_spares_links_and_empty_folders(tmp_path, adapters, updates):
    for name, make in {
        "heads": lambda path: path.symlink_to(tmp_path / "in0"),
        "notes/": lambda path: path.mkdir(),
    }.items():
        out = samples.write(tmp_path / f"out-{name.strip('/')}")
        make(out / name)
        with pytest.raises(io.AdapterError, match=f"not an adapter: '{name}'"):
            io.save_peft(out, updates, like=adapters, force=True)
        assert (out / name).exists()


@pytest.mark.parametrize("record", ["", "[]", "{", '{"output": 3}', "[" * 10**5])
def test_a_damaged_record_speaks_for_no_file(record, tmp_path, adapters, updates):
    out = samples.write(tmp_path / "out")
    put(out / "jaxmerge.json", record)
    put(out / "phi.safetensors", "precious")
    with pytest.raises(io.AdapterError, match=r"not an adapter: 'phi\.safetensors'"):
        io.save_peft(out, updates, like=adapters, force=True)
    (out / "phi.safetensors").unlink()
    io.save_peft(out, updates, like=adapters, force=True)


def test_everything_that_is_written_can_be_replaced(tmp_path):
    """Whatever a writer puts into a folder is known to be its own."""
    folder = samples.write(tmp_path / "a*[b]", samples.with_head())
    adapters = io.load_peft([folder], heads="keep")
    stacks, out = adapters.stacks, tmp_path / "out"
    save = {"like": adapters, "force": True}
    extra = {"phi.safetensors": {"x": np.ones(2)}, "a[0].safetensors": {}}
    io.save_peft(out, samples.summed(adapters), extra_files=extra, **save)
    assert {path.name for path in out.iterdir()} >= {"heads", *extra}
    dense = {module: samples.update(stack) for module, stack in stacks.items()}
    io.save_peft(out, dense, dense="full", dtype="float32", **save)
    assert (out / "delta.safetensors").is_file()
    io.save_orbax(out, adapters, force=True)
    put(out / "leaves" / "notes.txt", "precious")
    with pytest.raises(io.AdapterError, match=r"not an adapter: 'leaves/notes\.txt'"):
        io.save_orbax(out, adapters, force=True)
    (out / "leaves" / "notes.txt").unlink()
    io.save_orbax(out, adapters, force=True)
    io.save_peft(out, samples.summed(adapters), **save)
    assert io.load_peft([out], heads="keep").stacks.keys() == stacks.keys()


def test_force_spares_every_input_by_whatever_name(tmp_path, adapters, updates):
    out = samples.write(tmp_path / "out")
    put(out / "README.md", "precious")
    link = tmp_path / "link"
    link.symlink_to(out)
    for kept in (out, out / "README.md", link / "README.md", out / "not" / "there"):
        with pytest.raises(io.AdapterError, match="is or holds the input"):
            io.save_peft(out, updates, like=adapters, force=True, inputs=[kept])
    assert (out / "README.md").read_text() == "precious"


@pytest.mark.parametrize("force", [False, True])
def test_what_appears_during_the_work_is_not_replaced(force, tmp_path):
    out = tmp_path / "out"

    def write():
        with staged_folder(out, force=force) as folder:
            put(folder / "jaxmerge.json", "{}")
            put(out / "thesis.tex", "precious")

    with pytest.raises(io.AdapterError, match="not an adapter" if force else "exists"):
        write()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["thesis.tex"]


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
    write = SafetensorsWriter.write
    monkeypatch.setattr(
        SafetensorsWriter, "write", lambda file, values: write(file, values + 1)
    )
    with pytest.raises(RuntimeError, match="does not read back"):
        io.save_peft(tmp_path / "out", updates, like=adapters)
    assert sorted(os.listdir(tmp_path)) == ["in0", "in1"]


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
    hub.write_folder(tmp_path / "base", {}, {"w": np.ones(2)})
    moments = jm.moments_of(jnp.ones((2, 3)))
    io.save_statistics(tmp_path / "stats", {"a": {"q": moments}})
    for folder in ("out", "base", "stats"):
        paths = (tmp_path / folder).iterdir()
        modes = {stat.S_IMODE(path.stat().st_mode) for path in paths}
        assert len(modes) == 1, folder
