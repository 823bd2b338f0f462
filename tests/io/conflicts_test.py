"""Adapters that do not belong together, and the plan that says so beforehand."""

import json

import io_samples as samples
import pytest

from jaxmerge import io
from jaxmerge.io import tensors as tensors_module
from jaxmerge.refusals import Option


def test_names_with_and_without_prefix(tmp_path):
    long = samples.write(
        tmp_path / "long",
        samples.linear("vision.h.0.fc") | samples.linear("vision.h.1.fc"),
    )
    short = samples.write(
        tmp_path / "short", samples.linear() | samples.linear("h.1.fc")
    )
    with pytest.raises(io.AdapterError, match=r"strip_prefix='vision\.'"):
        io.load_peft([long, short])
    stripped = io.load_peft([long, short], strip_prefix="vision.")
    assert sorted(stripped.stacks) == ["h.0.fc", "h.1.fc"]
    assert all(stack.ranks == (4, 4) for stack in stripped.stacks.values())
    added = io.load_peft([long, short], add_prefix="vision.")
    assert sorted(added.stacks) == ["vision.h.0.fc", "vision.h.1.fc"]
    bare = {k.removeprefix("base_model.model."): v for k, v in samples.linear().items()}
    assert list(samples.load_one(samples.write(tmp_path / "bare", bare)).stacks) == [
        "h.0.fc"
    ]
    mixed = bare | samples.linear("h.1.fc")
    with pytest.raises(io.AdapterError, match="mixes two layouts"):
        samples.load_one(samples.write(tmp_path / "mixed", mixed))


def test_different_bases(tmp_path):
    one = samples.write(tmp_path / "one", base_model_name_or_path="gpt2")
    two = samples.write(
        tmp_path / "two", base_model_name_or_path="openai-community/gpt2"
    )
    none = samples.write(tmp_path / "none", base_model_name_or_path=None)
    with pytest.raises(io.AdapterError, match=r"look like one model.*allow_different"):
        io.load_peft([one, two])
    assert len(io.load_peft([one, two], allow_different_bases=True).names) == 2
    assert len(io.load_peft([one, none]).names) == 2
    late = samples.write(
        tmp_path / "late", base_model_name_or_path="gpt2", revision="v2"
    )
    early = samples.write(
        tmp_path / "early", base_model_name_or_path="gpt2", revision="v1"
    )
    with pytest.raises(io.AdapterError, match="revision"):
        io.load_peft([late, early])


def test_different_shapes_and_layouts(tmp_path):
    one = samples.write(tmp_path / "one")
    wide = samples.write(tmp_path / "wide", samples.linear(n=9))
    with pytest.raises(
        io.AdapterError, match=r"'h\.0\.fc'.*one.*wide.*cannot be merged"
    ):
        io.load_peft([one, wide])
    kernels = [
        samples.write(tmp_path / str(k), samples.conv(channels=c, kernel=(k, 1)))
        for k, c in ((1, 6), (2, 3))
    ]
    with pytest.raises(io.AdapterError, match=r"conv2d \(1, 1\).*conv2d \(2, 1\)"):
        io.load_peft(kernels)
    turned = samples.write(tmp_path / "turned", fan_in_fan_out=True)
    adapters = io.load_peft([one, turned])
    assert adapters.layouts["h.0.fc"].fan_in_fan_out is None


def test_plan_reads_headers_only(tmp_path, monkeypatch):
    def fail(self, key):
        raise AssertionError(f"{key} was read")

    monkeypatch.setattr(tensors_module.SafetensorsFile, "read", fail)
    one = samples.write(tmp_path / "one", samples.linear(r=2), r=2)
    two = samples.write(
        tmp_path / "two",
        samples.with_head() | samples.linear("h.1.fc", m=40, n=30, seed=2),
        lora_alpha=2,
    )
    plan = io.plan_peft([one, two])
    assert [adapter.ranks for adapter in plan.adapters] == [(2,), (4,)]
    assert [adapter.scales for adapter in plan.adapters] == [(4.0,), (0.5,)]
    assert plan.modules["h.0.fc"].ranks == (2, 4)
    assert plan.modules["h.1.fc"].scales == (0.0, 0.5)
    assert (plan.rank, plan.max_lora_rank, plan.dtype) == (6, 8, "float32")
    assert [conflict.kind for conflict in plan.conflicts] == ["heads"]
    assert plan.memory.factors == 4 * 2 * 4 * (11 + 70)
    assert plan.memory.largest_dense == 4 * 2 * 40 * 30
    assert plan.memory.output == 4 * 6 * (11 + 70)
    assert any("1 of 2 modules" in str(note) for note in plan.notes)
    assert any("above what 1 modules can hold" in str(note) for note in plan.notes)
    document = json.loads(json.dumps(plan.to_json()))
    assert document["notes"] == [str(note) for note in plan.notes]
    assert document["conflicts"] == [
        {"kind": "heads", "message": str(plan.conflicts[0].message)}
    ]
    assert Option("energy", "<share>") in plan.notes[-1]
    assert Option("heads", "keep", quoted=True) in plan.conflicts[0].message
    assert io.plan_peft([one, two], heads="keep").conflicts == ()


def test_plan_finds_every_conflict_at_once(tmp_path):
    one = samples.write(tmp_path / "one", samples.with_head())
    two = samples.write(
        tmp_path / "two", samples.linear(n=7), base_model_name_or_path="org/other"
    )
    kinds = [conflict.kind for conflict in io.plan_peft([one, two]).conflicts]
    assert sorted(kinds) == ["base", "heads", "shape"]
    with pytest.raises(io.AdapterError, match="2 more conflicts") as refused:
        io.load_peft([one, two])
    assert Option("allow_different_bases", "True") in refused.value.message


def test_plan_warns_above_what_vllm_takes(tmp_path):
    tensors = samples.linear(m=600, n=600, r=300)
    one = samples.write(tmp_path / "one", tensors, r=300)
    two = samples.write(tmp_path / "two", tensors, r=300)
    plan = io.plan_peft([one, two])
    assert (plan.rank, plan.max_lora_rank) == (600, None)
    assert any("vLLM" in str(note) for note in plan.notes)
