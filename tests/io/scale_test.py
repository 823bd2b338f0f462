"""The scale that PEFT gives a module: alpha, rank, rsLoRA and the patterns."""

import io_samples as samples
import ml_dtypes
import numpy as np
import pytest

from jaxmerge import io

SCALES = [
    ({}, 8 / 4),
    ({"use_rslora": True}, 8 / 2),
    ({"lora_alpha": 3}, 3 / 4),
    ({"lora_alpha": 2.5}, 2.5 / 4),
    ({"lora_alpha": -4}, -1.0),
    ({"alpha_pattern": {"fc": 32}}, 8.0),
    ({"alpha_pattern": {"h.0.fc": 32, "fc": 4}}, 8.0),
    ({"alpha_pattern": {"fc": 4, "h.0.fc": 32}}, 1.0),
    ({"alpha_pattern": {"c": 99}}, 2.0),
    ({"alpha_pattern": {r"h\.\d+\.f.": 16}, "use_rslora": True}, 8.0),
    ({"rank_pattern": {"fc": 4}, "r": 16}, 2.0),
    ({"rank_pattern": {"^h.0.fc": 4}, "r": 16}, 2.0),
    ({"rank_pattern": {"a|fc": 4}, "r": 16, "use_rslora": True}, 4.0),
]


@pytest.mark.parametrize(("config", "scale"), SCALES)
def test_effective_scale(tmp_path, config, scale):
    tensors = samples.linear()
    adapters = samples.load_one(samples.write(tmp_path / "a", tensors, **config))
    assert adapters.sources[0].scales["h.0.fc"] == pytest.approx(scale, rel=1e-12)
    samples.close(
        samples.update(adapters.stacks["h.0.fc"]),
        samples.product(tensors[samples.KEY_B], tensors[samples.KEY_A], scale),
    )


def test_old_config_without_later_fields(tmp_path):
    raw = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none",
        "target_modules": ["fc"], "fan_in_fan_out": False, "merge_weights": False,
        "enable_lora": None, "modules_to_save": None, "init_lora_weights": True,
        "base_model_name_or_path": "org/base", "inference_mode": True,
        "lora_dropout": 0.05, "task_type": "CAUSAL_LM",
    }  # fmt: skip
    adapters = samples.load_one(samples.write(tmp_path / "a", raw_config=raw))
    assert adapters.sources[0].scales == {"h.0.fc": 2.0}
    assert adapters.sources[0].task_type == "CAUSAL_LM"


def test_missing_alpha_needs_an_assumption(tmp_path):
    raw = {key: value for key, value in samples.BASE.items() if key != "lora_alpha"}
    folder = samples.write(tmp_path / "a", raw_config=raw)
    with pytest.raises(io.AdapterError, match="assume_alpha"):
        samples.load_one(folder)
    assert samples.load_one(folder, assume_alpha=6).sources[0].scales["h.0.fc"] == 1.5
    assert (
        samples.load_one(folder, assume_alpha="rank").sources[0].scales["h.0.fc"] == 1.0
    )
    given = samples.write(tmp_path / "b")
    assert samples.load_one(given, assume_alpha=6).sources[0].scales["h.0.fc"] == 2.0


def test_patterns_see_the_names_of_the_file(tmp_path):
    folder = samples.write(
        tmp_path / "a",
        samples.linear("vision.h.0.fc"),
        alpha_pattern={"vision.h.0.fc": 40},
    )
    adapters = samples.load_one(folder, strip_prefix="vision.")
    assert adapters.sources[0].scales == {"h.0.fc": 10.0}


def test_rank_that_contradicts_the_config(tmp_path):
    folder = samples.write(tmp_path / "a", r=8)
    with pytest.raises(io.AdapterError, match=r"'h\.0\.fc' has rank 4.*but 8"):
        samples.load_one(folder)


def test_equivalent_files_give_one_update(tmp_path):
    """Formats, key styles, gauges and spellings of the scale do not matter."""
    torch = pytest.importorskip("torch")
    tensors = samples.linear()
    reference = samples.load_one(samples.write(tmp_path / "reference", tensors))
    expected = samples.update(reference.stacks["h.0.fc"])
    ways = {
        "rslora": (tensors, {"use_rslora": True, "lora_alpha": 4}),
        "alpha_pattern": (tensors, {"alpha_pattern": {"fc": 8}, "lora_alpha": 1}),
        "rank_pattern": (tensors, {"rank_pattern": {"h.0.fc": 4}, "r": 64}),
        "gauge": (
            {
                samples.KEY_A: tensors[samples.KEY_A] * 8,
                samples.KEY_B: tensors[samples.KEY_B] / 8,
            },
            {},
        ),
        "into_b": (
            {
                samples.KEY_A: tensors[samples.KEY_A],
                samples.KEY_B: tensors[samples.KEY_B] * 4,
            },
            {"lora_alpha": 2},
        ),
        "default": (
            {k.replace(".weight", ".default.weight"): v for k, v in tensors.items()},
            {},
        ),
    }
    for name, (values, config) in ways.items():
        found = samples.load_one(samples.write(tmp_path / name, values, **config))
        samples.close(samples.update(found.stacks["h.0.fc"]), expected, 1e-6)
    for name, legacy in (("zip", False), ("stream", True)):
        folder = samples.write(tmp_path / name)
        (folder / "adapter_model.safetensors").unlink()
        torch.save(
            {k: torch.from_numpy(v) for k, v in tensors.items()},
            folder / "adapter_model.bin",
            _use_new_zipfile_serialization=not legacy,
        )
        found = samples.load_one(folder)
        np.testing.assert_array_equal(
            found.stacks["h.0.fc"].b, reference.stacks["h.0.fc"].b
        )
    brain = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    found = samples.load_one(samples.write(tmp_path / "bf16", brain))
    samples.close(samples.update(found.stacks["h.0.fc"]), expected, 2**-6)
