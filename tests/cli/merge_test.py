"""``jaxmerge merge``: results, options, refusals, and what is printed."""

import json

import io_samples as samples
import numpy as np
import pytest
import safetensors.numpy
from cli_samples import (
    close,
    document,
    everything,
    jaxmerge,
    refuse,
    succeed,
    three,
    updates_of,
    weighted_sum,
)
from io_samples import config_of, record_of

from jaxmerge import io
from jaxmerge.spec import PRESETS, memory, parse

TIES = "elect|trim(density=0.5)|core|scale(0.3)"
pytestmark = pytest.mark.usefixtures("no_cache")


@pytest.fixture
def folders(tmp_path):
    return three(tmp_path / "in")


def test_task_arithmetic_with_weights_is_the_weighted_sum(folders, tmp_path):
    out = tmp_path / "out"
    weights = ("--weights", "0.5,-1,2")
    said = succeed("merge", *folders, "-p", "concat|scale(0.5)", "-o", out, *weights)
    close(updates_of(out), weighted_sum(folders, [0.25, -0.5, 1.0]))
    assert str(out) in said
    assert "3 adapters merged, 2 modules" in said
    assert "concat|scale(0.5)" in said
    assert "rank      9 (vLLM: --max-lora-rank 16)" in said
    assert config_of(out)["r"] == config_of(out)["lora_alpha"] == 9
    recipe = record_of(out)["recipe"]
    assert recipe == {"pipeline": "concat|scale(0.5)", "weights": [0.5, -1.0, 2.0]}


def test_the_command_gives_what_the_library_gives(folders, tmp_path):
    succeed("merge", *folders, "-p", TIES, "-o", tmp_path / "out")
    adapters = io.load_peft(folders)
    updates = parse(TIES).run(adapters.stacks)
    io.save_peft(tmp_path / "library", updates, like=adapters)
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (
        tmp_path / "library" / name
    ).read_bytes()


def test_a_preset_is_recorded_as_what_it_stands_for(folders, tmp_path):
    succeed("merge", *folders, "-p", "knots_ties", "-o", tmp_path / "out")
    recipe = record_of(tmp_path / "out")["recipe"]
    assert recipe == {"pipeline": PRESETS["knots_ties"].pipeline}


def test_a_random_pipeline_needs_a_seed_and_repeats_with_it(folders, tmp_path):
    ask = ("merge", *folders, "-p", "total|dare(density=0.5)|core")
    said = refuse(*ask, "-o", tmp_path / "none")
    assert "draws at random" in said
    assert "--seed 0" in said
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        succeed(*ask, "-o", tmp_path / name, "--seed", seed)
    a, b, c = (everything(tmp_path / name) for name in "abc")
    assert a["adapter_model.safetensors"] == b["adapter_model.safetensors"]
    assert a["adapter_model.safetensors"] != c["adapter_model.safetensors"]
    assert record_of(tmp_path / "c")["recipe"]["seed"] == 2


def test_ranks(folders, tmp_path):
    ask = ("merge", *folders, "-p", "concat")
    succeed(*ask, "-o", tmp_path / "two", "--rank", 2)
    assert config_of(tmp_path / "two")["r"] == 2
    u, s, vt = np.linalg.svd(weighted_sum(folders, [1, 1, 1])["h.0.q"])
    best = u[:, :2] * s[:2] @ vt[:2]
    close({"": updates_of(tmp_path / "two")["h.0.q"]}, {"": best})
    succeed(*ask, "-o", tmp_path / "auto", "--rank", "auto")
    assert config_of(tmp_path / "auto")["r"] == 4
    found = document(*ask, "-o", tmp_path / "most", "--energy", 0.9)
    assert all(0.9 <= share <= 1 for share in found["energy"].values())
    assert found["rank"] < 9
    succeed(*ask, "-o", tmp_path / "ragged", "--ragged")
    assert set(config_of(tmp_path / "ragged")["rank_pattern"].values()) <= {6, 9}
    said = refuse(*ask, "-o", tmp_path / "x", "--rank", 2, "--energy", 0.5)
    assert "--rank and --energy" in said
    assert "a share in (0, 1]" in refuse(*ask, "-o", tmp_path / "x", "--energy", 2)
    assert "--rank" in refuse(*ask, "-o", tmp_path / "x", "--rank", "most")


@pytest.mark.thorough
def test_dense_results_need_a_decision_before_any_work(folders, tmp_path, monkeypatch):
    ask = ("merge", *folders, "-p", "elect|trim(density=0.5)|full")
    with monkeypatch.context() as patched:
        patched.setattr(io, "load_peft", None)
        assert "--dense truncate" in refuse(*ask, "-o", tmp_path / "x")
        assert "--rank" in refuse(*ask, "-o", tmp_path / "x", "--dense", "truncate")
    succeed(*ask, "-o", tmp_path / "cut", "--dense", "truncate", "--rank", 3)
    assert config_of(tmp_path / "cut")["r"] == 3
    said = succeed(*ask, "-o", tmp_path / "delta", "--dense", "full")
    assert "weight deltas" in said
    deltas = safetensors.numpy.load_file(tmp_path / "delta" / "delta.safetensors")
    expected = parse("elect|trim(density=0.5)|full").run(io.load_peft(folders).stacks)
    np.testing.assert_allclose(deltas["h.0.q.weight"], expected["h.0.q"], rtol=1e-6)
    truncated = f"{ask[-1]}|truncate(rank=3)"
    succeed(*ask[:-1], truncated, "-o", tmp_path / "post")
    close(updates_of(tmp_path / "post"), updates_of(tmp_path / "cut"))


def test_dtype(folders, tmp_path):
    ask = ("merge", *folders, "-p", "concat", "-o", tmp_path / "out")
    found = document(*ask, "--dtype", "bfloat16")
    assert found["dtype"] == "bfloat16"
    assert 0 < max(found["cast_error"].values()) < 0.02
    assert "float8" in refuse(*ask[:-1], tmp_path / "x", "--dtype", "float8")


def test_heads(tmp_path):
    head = {"base_model.model.classifier.weight": samples.random(2, 5)}
    folders = [
        samples.write(tmp_path / name, samples.linear(seed=seed) | head)
        for seed, name in enumerate("ab")
    ]
    ask = ("merge", *folders, "-p", "concat", "-o")
    assert "pass --heads keep" in refuse(*ask, tmp_path / "out")
    succeed(*ask, tmp_path / "mean", "--heads", "mean")
    weights = tmp_path / "mean" / "adapter_model.safetensors"
    stored = safetensors.numpy.load_file(weights)
    ((key, value),) = head.items()
    np.testing.assert_allclose(stored[key], value)
    succeed(*ask, tmp_path / "kept", "--heads", "keep")
    assert (tmp_path / "kept" / "heads" / "a.safetensors").is_file()


def test_biases_are_merged_with_the_updates(tmp_path):
    folders = three(tmp_path / "in", bias=True)
    ask = ("merge", *folders, "--weights", "1,2,-1", "-o")
    loaded = io.load_peft(folders)
    bias = np.array([1.0, 2.0, -1.0]) @ np.asarray(loaded.biases["h.0.q"], np.float64)
    for name, pipeline, factor in (
        ("linear", "concat|scale(0.5)", 0.5),
        ("mean", "tsv_m|scale(0.5)", 0.5 / 3),
    ):
        succeed(*ask, tmp_path / name, "-p", pipeline)
        merged = io.load_peft([tmp_path / name])
        np.testing.assert_allclose(merged.biases["h.0.q"][0], factor * bias, rtol=1e-5)


@pytest.mark.thorough
def test_chunks_change_nothing(folders, tmp_path):
    twins = [
        samples.write(
            tmp_path / name,
            samples.linear("h.0.q", seed=seed) | samples.linear("h.1.q", seed=seed + 5),
        )
        for seed, name in enumerate("ab")
    ]
    for name, more in (("all", ()), ("one", ("--chunk", 1))):
        succeed("merge", *twins, "-p", TIES, "-o", tmp_path / name, *more)
    close(updates_of(tmp_path / "one"), updates_of(tmp_path / "all"))
    assert "--chunk" in refuse(
        "merge", *twins, "-p", TIES, "-o", tmp_path / "x", "--chunk", 0
    )


def test_full_space_is_chunked_by_itself(folders, monkeypatch):
    stacks = io.load_peft(folders).stacks
    one = dict.fromkeys("abcd", stacks["h.0.q"])
    pipeline = parse("elect|full")
    assert memory.chunk(pipeline, one) is None
    dense = 3 * 6 * 5 * 4
    monkeypatch.setattr(memory, "BYTES_AT_A_TIME", 2 * dense)
    assert memory.chunk(pipeline, one) == 2
    monkeypatch.setattr(memory, "BYTES_AT_A_TIME", 1)
    assert memory.chunk(pipeline, one) == 1
    assert memory.chunk(parse("elect|core"), one) is None


def test_a_dry_run_reads_headers_and_writes_nothing(folders, tmp_path):
    ask = ("merge", *folders, "-o", tmp_path / "out", "--dry-run")
    before = everything(tmp_path)
    said = succeed(*ask, "-p", TIES)
    assert "is not written" in said
    assert TIES in said
    found = document(*ask, "-p", "knots_ties")
    assert found["dry_run"] is True
    assert found["recipe"] == {"pipeline": PRESETS["knots_ties"].pipeline}
    assert found["rank"] == 9
    assert "needs adapters of one rank" in refuse(*ask, "-p", "robust_merge")
    samples.write(tmp_path / "in" / "cars", base_model_name_or_path="org/other")
    before |= everything(tmp_path)
    result = jaxmerge(*ask, "-p", TIES)
    assert result.exit_code == 2
    assert "conflict: " in result.stdout
    assert everything(tmp_path) == before


def test_json_is_one_document_and_quiet_is_silent(folders, tmp_path):
    ask = ("merge", *folders, "-p", TIES, "-o")
    result = jaxmerge(*ask, tmp_path / "a", "--json")
    found = json.loads(result.stdout)
    assert result.stderr == ""
    assert found["adapters"] == ["cars", "dtd", "svhn"]
    assert found["recipe"] == {"pipeline": TIES}
    assert found["notes"] == []
    assert found["ranks"] == {"h.0.o": 6, "h.0.q": 6}  # K = 9 directions, m or n = 5, 6
    files = (tmp_path / "a").iterdir()
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    result = jaxmerge(*ask, tmp_path / "b", "--quiet")
    assert (result.stdout, result.stderr) == ("", "")
    assert updates_of(tmp_path / "b").keys() == {"h.0.o", "h.0.q"}


# --- adapters of other people ------------------------------------------------------


@pytest.mark.thorough
def test_gpt2_domains(shared, tmp_path):
    """Four trainers' folders; the last has twice the scale of the others."""
    place = shared / "adapters" / "gpt2_domains"
    three_of = [place / name for name in ("legal", "medical", "sports")]
    four = [*three_of, place / "tigrinya"]
    succeed("merge", *three_of, "-p", TIES, "-o", tmp_path / "three")
    assert len(updates_of(tmp_path / "three")) == 36
    weights = [0.5, 0.3, 0.2, -0.1]
    found = document(
        *("merge", *four, "-p", "concat", "-o", tmp_path / "four"),
        *("--weights", ",".join(map(str, weights))),
    )
    assert (found["rank"], found["max_lora_rank"]) == (32, 32)
    inputs, merged = io.load_peft(four), io.load_peft([tmp_path / "four"])
    for module in ("transformer.h.0.attn.c_attn", "transformer.h.11.mlp.c_proj"):
        each = [samples.update(inputs.stacks[module], task) for task in range(4)]
        expected = np.tensordot(weights, each, axes=1)
        close({"": samples.update(merged.stacks[module])}, {"": expected})


@pytest.mark.thorough
def test_minilm_nli6(shared, tmp_path):
    """Six classifiers with heads of their own."""
    names = ("mnli", "qnli", "snli", "rte", "sick", "scitail")
    folders = [shared / "adapters" / "minilm_nli6" / name for name in names]
    ask = ("merge", *folders, "-p", "core_tsv_iso", "-o", tmp_path / "out")
    assert "pass --heads keep" in refuse(*ask)
    found = document(*ask, "--heads", "keep", "--rank", "auto")
    assert found["rank"] == 16
    assert 0 < min(found["energy"].values()) < 1
    assert any("flat spectrum" in note for note in found["notes"])
    assert not any("'score'" in note for note in found["notes"])
    for name in names:
        assert (tmp_path / "out" / "heads" / f"{name}.safetensors").is_file()
