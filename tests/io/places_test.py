"""What was given instead of an adapter folder, and what to give."""

import shutil

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io


def refused(given, **options) -> str:
    with pytest.raises(io.AdapterError) as error:
        io.load_peft([given], **options)
    return str(error.value)


@pytest.mark.parametrize(
    "nested",
    [
        "default",
        "checkpoint-500",
        "snapshots/0123456789abcdef0123456789abcdef01234567",
        "v0-20260101-120000/checkpoint-20",
        "out/run/default",
    ],
)
def test_the_subfolder_that_holds_the_adapter_is_named(tmp_path, nested):
    samples.write(tmp_path / "run" / nested)
    (tmp_path / "run" / "runs" / "events").mkdir(parents=True)
    said = refused(tmp_path / "run")
    assert f"lies in a subfolder; give {tmp_path / 'run' / nested}" in said


def test_checkpoints_are_named_in_their_order(tmp_path):
    for step in (500, 1000, 90):
        samples.write(tmp_path / f"checkpoint-{step}")
    said = refused(tmp_path)
    assert "3 subfolders do" in said
    assert said.index("-90'") < said.index("-500'") < said.index("-1000'")
    assert said.endswith(f"the last checkpoint is '{tmp_path / 'checkpoint-1000'}'")


@pytest.mark.parametrize("left", ["adapter_config.json", "training_args.bin"])
def test_a_folder_that_is_half_an_adapter_names_the_subfolder(tmp_path, left):
    samples.write(tmp_path / "default")
    shutil.copy(tmp_path / "default" / "adapter_config.json", tmp_path / left)
    assert f"give {tmp_path / 'default'}" in refused(tmp_path)


def test_a_search_is_bounded_and_follows_no_links(tmp_path):
    samples.write(tmp_path / "a" / "b" / "c" / "d")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert "no adapter_config.json" in refused(tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_of_an_adapter_names_its_folder(tmp_path, name):
    folder = samples.write(tmp_path / "a")
    assert f"give the folder that holds it, {folder}" in refused(folder / name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter.zip", "an archive"),
        ("adapter.tar.gz", "an archive"),
        ("model-f16.gguf", "llama.cpp"),
        ("style.safetensors", "LyCORIS"),
        ("notes.txt", "not a folder; give the folder that holds adapter_config"),
        ("broken.safetensors", "not a complete weight file"),
    ],
)
def test_other_files_are_named(tmp_path, name, said):
    path = tmp_path / name
    if name == "style.safetensors":
        key = "lora_unet_mid_block_attn1_to_q.hada_w1_a"
        safetensors.numpy.save_file({key: np.zeros((2, 2), np.float32)}, path)
    else:
        path.write_bytes(b"x")
    assert said in refused(path)


@pytest.mark.parametrize("between", [",", ", ", ";", " "])
def test_folders_in_one_argument_are_told_apart(tmp_path, monkeypatch, between):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        samples.write(tmp_path / name)
    assert "but 'a', 'b' are folders; give each folder for itself" in refused(
        f"a{between}b"
    )


@pytest.mark.parametrize(
    "given",
    [
        "org/name-7b",
        "https://huggingface.co/org/name-7b",
        "https://huggingface.co/org/name-7b/tree/main",
        "huggingface.co/org/name-7b",
        "hf://org/name-7b",
    ],
)
def test_an_id_on_the_hub_says_how_to_download_it(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert "`hf download org/name-7b` prints the folder" in refused(given)


@pytest.mark.parametrize("given", ["org/name-7b", "./org/name", "/org/name", "a/b/c"])
def test_a_local_path_is_no_id_on_the_hub(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    assert refused(given).endswith("no such folder")


def test_a_home_in_quotes_is_spelled_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = samples.write(tmp_path / "a")
    assert f"give {folder}" in refused("~/a")


def test_a_number_is_told_as_a_weight():
    assert "weights=" in refused("0.3")


def test_weights_of_another_name_are_named(tmp_path):
    folder = samples.write(tmp_path / "a")
    (folder / samples.SAFE).rename(folder / "lora.safetensors")
    assert "it holds 'lora.safetensors'; rename that" in refused(folder)
