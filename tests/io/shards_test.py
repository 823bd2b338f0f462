"""Adapters whose weights lie in several files with an index."""

import json

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io
from jaxmerge.io.shards import ShardedFile

INDEX = "adapter_model.safetensors.index.json"
FIRST, SECOND = (f"adapter_model-0000{n}-of-00002.safetensors" for n in (1, 2))


def both():
    return samples.linear() | samples.linear("h.1.fc", seed=5)


def sharded(folder, tensors=None):
    """An adapter folder with A in one shard and B in the other."""
    tensors = both() if tensors is None else tensors
    samples.write(folder, tensors)
    (folder / samples.SAFE).unlink()
    places = {key: FIRST if "lora_A" in key else SECOND for key in tensors}
    for name in (FIRST, SECOND):
        held = {key: tensors[key] for key in tensors if places[key] == name}
        safetensors.numpy.save_file(held, folder / name)
    write_index(folder, places)
    return folder


def write_index(folder, places):
    document = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(document))


def places_of(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def test_shards_are_read_as_one_file(tmp_path):
    whole = samples.load_one(samples.write(tmp_path / "whole", both()))
    parts = samples.load_one(sharded(tmp_path / "parts"))
    assert parts.stacks.keys() == whole.stacks.keys()
    for module, stack in whole.stacks.items():
        np.testing.assert_array_equal(stack.b, parts.stacks[module].b)
        np.testing.assert_array_equal(stack.a, parts.stacks[module].a)
    (source,) = parts.sources
    assert source.weight_file == INDEX
    assert sorted(source.sha256) == sorted([samples.CONFIG, INDEX, FIRST, SECOND])
    assert source.notes == ()


def test_torch_shards_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    folder = samples.write(tmp_path / "a")
    (folder / samples.SAFE).unlink()
    places = {}
    for number, (key, value) in enumerate(samples.linear().items(), 1):
        places[key] = f"adapter_model-0000{number}-of-00002.bin"
        torch.save({key: torch.from_numpy(value)}, folder / places[key])
    index = folder / "adapter_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    whole = samples.load_one(samples.write(tmp_path / "b"))
    parts = samples.load_one(folder, weight_file="bin")
    np.testing.assert_array_equal(whole.stacks["h.0.fc"].b, parts.stacks["h.0.fc"].b)


def remove_shard(folder):
    (folder / SECOND).unlink()


def cut_shard(folder):
    shard = folder / SECOND
    shard.write_bytes(shard.read_bytes()[:-4])


def forget_a_tensor(folder):
    places = places_of(folder)
    places.pop(samples.KEY_B)
    write_index(folder, places)


def invent_a_tensor(folder):
    write_index(folder, places_of(folder) | {"h.2.fc.lora_A.weight": FIRST})


def swap_places(folder):
    write_index(folder, places_of(folder) | {samples.KEY_B: FIRST})


def leave_the_folder(folder):
    outside = f"../{folder.name}/{SECOND}"
    write_index(folder, places_of(folder) | {samples.KEY_B: outside})


def point_at_a_torch_file(folder):
    write_index(folder, places_of(folder) | {samples.KEY_B: "x.bin"})


def break_the_map(folder):
    write_index(folder, {samples.KEY_B: 3})


def empty_the_map(folder):
    write_index(folder, {})


def break_the_index(folder):
    (folder / INDEX).write_text("{")


def lose_the_index(folder):
    (folder / INDEX).unlink()


def add_a_whole_file(folder):
    safetensors.numpy.save_file(both(), folder / samples.SAFE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_shard, f"{SECOND}: cannot be read"),
        (cut_shard, f"{SECOND}: not a complete safetensors file"),
        (forget_a_tensor, f"lists other tensors in {SECOND}"),
        (invent_a_tensor, f"lists other tensors in {FIRST}"),
        (swap_places, "lists other tensors in"),
        (leave_the_folder, "not the name of a .safetensors file beside it"),
        (point_at_a_torch_file, "'x.bin' is not the name of a .safetensors file"),
        (break_the_map, "3 is not the name of a .safetensors file"),
        (empty_the_map, "has no weight_map"),
        (break_the_index, f"{INDEX}: not valid JSON"),
        (lose_the_index, f"holds shards .*without their index {INDEX}"),
        (add_a_whole_file, "which may be different runs; remove"),
    ],
)
def test_damaged_shards_are_refused_by_name(tmp_path, damage, message):
    folder = sharded(tmp_path / "a")
    damage(folder)
    with pytest.raises(io.AdapterError, match=message) as refused:
        samples.load_one(folder)
    assert str(folder) in str(refused.value)


def test_a_bad_value_is_named_with_its_shard(tmp_path):
    tensors = both()
    tensors[samples.KEY_B][0, 0] = np.nan
    with pytest.raises(io.AdapterError, match=rf"{SECOND}: tensor .*lora_B.*NaN"):
        samples.load_one(sharded(tmp_path / "a", tensors))


def test_the_number_of_shards_is_bounded(tmp_path):
    folder = sharded(tmp_path / "a")
    write_index(folder, {f"k{n}": f"s{n}.safetensors" for n in range(1001)})
    with pytest.raises(io.AdapterError, match="lists 1001 files"):
        ShardedFile(folder / INDEX)
