"""Names, shapes and numbers that ended in an uncaught error, each of them refused."""

import json
import os

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io

pytest_plugins = ["io_fixtures"]


def vera(**more):
    start = "base_model.model.fc.vera_lambda_"
    return {
        "base_model.vera_A": samples.random(2, 4),
        "base_model.vera_B": samples.random(4, 2),
        f"{start}b": samples.random(3),
        f"{start}d": samples.random(2),
        **more,
    }


@pytest.mark.parametrize(
    "name", ["vera_A.", "vera_B..", "vera_A.default.weight", "vera_A.a.b"]
)
def test_projections_of_odd_names(tmp_path, name):
    config = {"peft_type": "VERA", "r": 2}
    tensors = vera(**{f"base_model.{name}": samples.random(2, 4)})
    folder = samples.write(tmp_path / "in", tensors, raw_config=config)
    samples.refuse(folder, f"{name}.*(is not understood|name one tensor)")


ADALORA = {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 8}


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "lora_E"])
@pytest.mark.parametrize("shape", [(), (4,), (1, 1, 1, 1, 1, 1)])
def test_factors_without_rows_and_columns(tmp_path, part, shape):
    plain = {k.removesuffix(".weight"): v for k, v in samples.linear("fc").items()}
    plain["base_model.model.fc.lora_E"] = samples.random(4, 1)
    plain[f"base_model.model.fc.{part}"] = np.zeros(shape, np.float32)
    folder = samples.write(tmp_path / "in", plain, **ADALORA)
    samples.refuse(folder, r"module 'fc': (lora_E is|factors of shapes|shapes)")


@pytest.mark.parametrize("value", [10**400, 2**63, 2**31 + 1])
@pytest.mark.parametrize("key", ["init_r", "r"])
def test_ranks_that_no_number_holds(tmp_path, key, value):
    config = {**samples.BASE, **(ADALORA if key == "init_r" else {}), key: value}
    folder = samples.write(tmp_path / "in", raw_config=config)
    samples.refuse(folder, rf"{key} must be a positive integer")
    config = {**samples.BASE, "rank_pattern": {"fc": value}}
    (folder / samples.CONFIG).write_text(json.dumps(config))
    samples.refuse(folder, r"rank_pattern\['fc'\] must be a positive integer")


TEXTS = {"escape": "a\x1b[2Jb", "half": "\ud800", "turned": "a\u202eb", "line": "a\nb"}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "key", ["base_model_name_or_path", "revision", "task_type", "peft_type"]
)
def test_texts_of_a_config_that_cannot_be_shown(folder, key, name):
    config = {**samples.BASE, key: TEXTS[name]}
    (folder / samples.CONFIG).write_text(json.dumps(config))
    samples.refuse(folder, "cannot be shown|half a character")


def test_endless_lists_of_saved_modules(folder):
    names = [f"head{i}" for i in range(2000)]
    config = {**samples.BASE, "modules_to_save": names}
    (folder / samples.CONFIG).write_text(json.dumps(config))
    samples.refuse(folder, "modules_to_save lists 2000 names")


FOLDERS = ["a\x1b[2Jb", "a\nb", os.fsdecode(b"caf\xe9"), "a\u202eb"]


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_no_record_can_name(tmp_path, adapters, updates, name):
    folder = samples.write(tmp_path / "plain")
    other = folder.rename(tmp_path / name)
    samples.refuse(other, "not in UTF-8, so that no record can name it")
    samples.refuse(samples.write(other / "plain"), "no record can name it")
    with pytest.raises(io.AdapterError, match="choose another name"):
        io.save_peft(tmp_path / f"out{name}", updates, like=adapters)


def test_folders_in_any_language(tmp_path):
    folder = samples.write(tmp_path / "Größe 东京 😀")
    adapters = io.load_peft([folder])
    io.save_peft(tmp_path / "ausgang é", samples.summed(adapters), like=adapters)
    assert io.load_peft([tmp_path / "ausgang é"]).stacks


def test_a_million_keys(tmp_path):
    """Counted in the header, before anything is made of them."""
    folder = samples.write(tmp_path / "in")
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b",".join(b'"k%d":%s' % (i, entry) for i in range(300_000))
    data = b"{" + text + b"}"
    (folder / samples.SAFE).write_bytes(samples.header_file(data))
    with samples.within(seconds=2, mebibytes=100):
        samples.refuse(folder, "more than 200000 tensors")


def test_tensors_of_one_name_in_two_spellings(folder):
    whole = (folder / samples.SAFE).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    table = json.loads(whole[8 : 8 + length])
    twice = json.dumps(table)[:-1] + "," + json.dumps(table)[1:]
    data = samples.header_file(twice.encode(), whole[8 + length :])
    (folder / samples.SAFE).write_bytes(data)
    assert safetensors.numpy.load_file(folder / samples.SAFE)  # the library takes it
    samples.refuse(folder, "a key occurs twice")
