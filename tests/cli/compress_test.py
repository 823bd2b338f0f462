"""``jaxmerge compress``, ``restore`` and ``cluster``: folders in and out."""

import json
import shutil

import io_samples as samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_samples import (
    close,
    document,
    everything,
    jaxmerge,
    refuse,
    succeed,
    three,
    updates_of,
)

import jaxmerge as jm
from jaxmerge import io
from jaxmerge.io.compressed_folder import compressed_adapters
from jaxmerge.io.stored import load_stored

NAMES = ("cars", "dtd", "svhn")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return three(tmp_path_factory.mktemp("in"))


@pytest.fixture(scope="module")
def compressed(folders, tmp_path_factory):
    """What was said, and the folder."""
    out = tmp_path_factory.mktemp("out") / "compressed"
    return document("compress", *folders, "--out", out), out


@pytest.mark.thorough
def test_with_a_component_for_each_adapter_all_come_back(compressed, folders, tmp_path):
    said, out = compressed
    assert said["exact"]
    assert said["adapters"] == list(NAMES)
    assert [row["components"] for row in said["curve"]] == [1, 2, 3]
    assert said["chosen"] == said["curve"][2]
    for name, folder in zip(NAMES, folders, strict=True):
        found = document("restore", out, "--adapter", name, "-o", tmp_path / name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        before = json.loads((folder / "adapter_config.json").read_text())
        assert found["exact"]
        assert found["rank"] == config["r"] == before["r"]
        close(updates_of(tmp_path / name), updates_of(folder), 2e-6)
    assert "restored from compressed ones" in (tmp_path / "dtd/README.md").read_text()
    assert str(out) not in (tmp_path / "dtd/README.md").read_text()
    said = refuse("verify", tmp_path / "dtd")
    assert "restored from compressed ones; restore it again" in said


@pytest.mark.thorough
def test_other_jobs_read_them_too(compressed, folders, tmp_path):
    _, out = compressed
    succeed("convert", out, "--task", "svhn", "-o", tmp_path / "svhn")
    close(updates_of(tmp_path / "svhn"), updates_of(folders[2]), 2e-6)
    assert load_stored(out).names == NAMES
    said = refuse("convert", out, out, "-o", tmp_path / "x", "--to", "orbax")
    assert "is a checkpoint of this kind already" in said


def test_the_curve_is_what_a_folder_loses(folders, tmp_path):
    out, plot = tmp_path / "two", tmp_path / "curve.png"
    options = ("-p", 2, "--rank", 5, "--plot", plot)
    found = document("compress", *folders, *options, "-o", out)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not found["exact"]
    row = found["chosen"]
    assert row == found["curve"][1]
    stored = io.load_orbax(out)
    numbers = sum(x.size for x in jax.tree.leaves(stored.merges))
    assert row["numbers"] == numbers - 2  # coefficients of one that is absent
    for name, folder in zip(NAMES, folders, strict=True):
        own, one = updates_of(folder), stored.restored(name)
        lost = sum(
            np.sum((samples.update(one.stacks[m], 0) - own[m]) ** 2) for m in own
        )
        expected = (lost / sum(np.sum(x**2) for x in own.values())) ** 0.5
        assert row["errors"][name] == pytest.approx(expected, abs=1e-5)
    said = succeed("restore", out, "--adapter", "dtd", "-o", tmp_path / "dtd")
    assert "dtd, nearly as it was, rank 5" in said
    found = document("convert", out, "--task", "dtd", "-o", tmp_path / "converted")
    assert "compressed with loss" in found["notes"][0]
    assert "cannot be computed again" in refuse("verify", tmp_path / "converted")
    told = ("restore", out, "--adapter", "dtd", "-o", tmp_path / "r", "--rank", 2)
    assert "the rank leaves 0." in succeed(*told)


@pytest.mark.thorough
def test_saved_modules_and_biases_stay(tmp_path):
    head = {"base_model.model.classifier.weight": samples.random(2, 5)}
    one = samples.linear(bias=True) | head
    two = samples.linear(bias=True, seed=3) | head
    inputs = [
        samples.write(tmp_path / name, tensors, lora_bias=True)
        for name, tensors in (("a", one), ("b", two))
    ]
    succeed("compress", *inputs, "-o", tmp_path / "both")
    succeed("restore", tmp_path / "both", "--adapter", "b", "-o", tmp_path / "back")
    before, after = (
        io.load_peft([p], heads="keep") for p in (inputs[1], tmp_path / "back")
    )
    (name,) = before.heads[0]
    np.testing.assert_array_equal(after.heads[0][name], before.heads[0][name])
    np.testing.assert_array_equal(after.biases["h.0.fc"], before.biases["h.0.fc"])


def test_nothing_is_replaced_and_what_is_no_such_folder_is_refused(
    compressed, folders, tmp_path
):
    _, out = compressed
    before = everything(out)
    assert "exists already; choose another" in refuse("compress", *folders, "-o", out)
    said = refuse("compress", *folders, "-o", folders[0], "--force")
    assert "is or holds the input" in said
    said = refuse("compress", *folders, "-p", 4, "-o", tmp_path / "x")
    assert "--components 4: 3 adapters have at most as many" in said
    said = refuse("restore", out, "--adapter", "dogs", "-o", tmp_path / "x")
    assert "--adapter dogs: not in" in said
    assert "cars, dtd, svhn" in said
    said = refuse("restore", folders[0], "--adapter", "cars", "-o", tmp_path / "x")
    assert "holds no compressed adapters" in said
    said = refuse("restore", out, "--adapter", "dtd", "-o", out, "--force")
    assert "is or holds the input" in said
    assert everything(out) == before
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(ranks=[4, 2]), r"ranks \[4, 2\] of 3 adapters"),
        (lambda m: m.update(b=m["a"], a=m["b"]), "do not fit each other"),
        (lambda m: m.update(kind="stack"), "expected a module of kind reversible"),
        (lambda m: m.pop("ranks"), "is missing"),
    ],
)
def test_a_changed_record_is_refused(compressed, tmp_path, change, says):
    from jaxmerge.io.orbax_record import digest_of_record

    shutil.copytree(compressed[1], tmp_path / "changed")
    path = tmp_path / "changed" / "jaxmerge.json"
    record = json.loads(path.read_text())
    change(next(iter(record["modules"].values())))
    record["sha256"] = digest_of_record(record)
    path.write_text(json.dumps(record))
    with pytest.raises(io.AdapterError, match=says):
        io.load_orbax(tmp_path / "changed")


def test_coefficients_where_there_is_no_adapter_are_refused(folders, tmp_path):
    value = compressed_adapters(io.load_peft(folders), components=3)
    module = next(m for m, ranks in value.ranks.items() if 0 in ranks)
    merge = value.merges[module]
    broken = merge._replace(coefficients=jnp.ones_like(merge.coefficients))
    value.merges[module] = broken
    with pytest.raises(io.AdapterError, match="but coefficients where one is 0"):
        io.save_orbax(tmp_path / "x", value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["given", "router"])
def test_routed_cores_come_back_as_they_were(folders, tmp_path, kind):
    stacks = io.load_peft(folders).stacks
    routed = jm.map_modules(jm.route_cores, stacks)
    if kind == "router":
        routed = {
            module: x.replace(gates=jm.Router(x.cores[:, 0], x.cores[:, 0, 0]))
            for module, x in routed.items()
        }
    io.save_orbax(tmp_path / "routed", routed)
    found = io.load_orbax(tmp_path / "routed")
    assert jax.tree.structure(found) == jax.tree.structure(routed)
    jax.tree.map(np.testing.assert_array_equal, found, routed)
    said = refuse("convert", tmp_path / "routed", "-o", tmp_path / "x")
    assert "without the layouts of an adapter" in said
    assert jaxmerge("inspect", tmp_path / "routed").exit_code == 2
    module, one = next(iter(routed.items()))
    with pytest.raises(io.AdapterError, match="do not fit each other"):
        io.save_orbax(tmp_path / "y", {module: one.replace(cores=one.cores[:, :1])})


def test_adapters_that_are_alike_are_of_one_group(folders, tmp_path):
    twin = shutil.copytree(folders[0], tmp_path / "wagons")
    found = document("cluster", *folders[:2], twin, "--groups", 2)
    assert [group["names"] for group in found["groups"]] == [
        ["cars", "wagons"],
        ["dtd"],
    ]
    first, second = found["groups"]
    assert first["within"] == pytest.approx(1, abs=1e-4)
    assert second["within"] is None
    assert first["nearest"] == ["dtd"]
    assert first["paths"] == [
        str(folders[0]),
        str(twin),
    ]
    assert first["between"] == pytest.approx(found["similarities"][0][1], abs=1e-4)
    said = succeed("cluster", *folders, "-g", 1, "--by", "cosine")
    assert "cars dtd svhn" in said
    said = refuse("cluster", *folders, "--groups", 4)
    assert "--groups 4: 3 adapters make 1 to 3 groups" in said
