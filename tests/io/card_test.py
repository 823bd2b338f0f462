"""The record of a merge and the model card."""

import json

import io_samples as samples

from jaxmerge import io

pytest_plugins = ["io_fixtures"]


def test_card_and_record(tmp_path, adapters, updates):
    recipe = {"pipeline": "elect|core", "weights": {"in0": 0.5}, "seed": 3}
    report = io.save_peft(tmp_path / "out", updates, like=adapters, card=recipe, rank=3)
    record = json.loads((tmp_path / "out" / "jaxmerge.json").read_text())
    assert record["recipe"] == recipe
    assert record["versions"].keys() == {"jaxmerge", "jax"}
    assert [entry["name"] for entry in record["inputs"]] == ["in0", "in1"]
    assert record["inputs"][0]["sha256"] == dict(adapters.sources[0].sha256)
    assert record["output"]["rank"] == 3
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert record["output"]["sha256"][name] == report.files[name]
    io.ReadOptions(**record["read_options"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(
        '---\nbase_model:\n- "org/base"\nlibrary_name: peft\ntags:\n'
    )
    assert "elect|core" in card
    assert "in0" in card
    assert adapters.sources[1].sha256["adapter_model.safetensors"] in card
    assert "`jaxmerge.json`" in card
    assert record["inputs"][0]["path"] == str(tmp_path / "in0")
    assert str(tmp_path) not in card
    text = io.save_peft(tmp_path / "text", updates, like=adapters, card="mean")
    assert text.path == str(tmp_path / "text")
    record = json.loads((tmp_path / "text" / "jaxmerge.json").read_text())
    assert record["recipe"] == {"pipeline": "mean"}


def test_card_survives_hostile_text(tmp_path):
    """What breaks a line is refused as it is read."""
    name = "a|b`c # heading ![x](y) <img src=x> _z_"
    folder = samples.write(
        tmp_path / name, base_model_name_or_path="/secret/place # - evil/model"
    )
    adapters = io.load_peft([folder])
    updates = samples.summed(adapters)
    io.save_peft(
        tmp_path / "out", updates, like=adapters, card="x\n````\n# y\n```\n---"
    )
    card = (tmp_path / "out" / "README.md").read_text()
    front = card.split("---")[1]
    assert "base_model" not in front
    assert "evil" not in front
    assert "a\\|b\\`c" in card
    for active in ("![x](y)", " <img", " _z_"):
        assert active not in card
    assert "`````text\nx\n````\n# y\n```\n---\n`````" in card
