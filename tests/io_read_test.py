"""Reading PEFT folders: one module of every kind, scales, names, heads, conflicts."""

import hashlib
import json

import io_samples as samples
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io
from jaxmerge.io import tensors as tensors_module

A, B = "base_model.model.h.0.fc.lora_A.weight", "base_model.model.h.0.fc.lora_B.weight"


def load_one(folder, **options):
    return io.load_peft([folder], **options)


def close(found, expected, tol=2e-6):
    np.testing.assert_allclose(
        found, expected, rtol=tol, atol=tol * np.abs(expected).max()
    )


def test_linear_update_is_scale_times_b_a(tmp_path):
    tensors = samples.linear()
    adapters = load_one(samples.write(tmp_path / "cars", tensors))
    stack = adapters.stacks["h.0.fc"]
    assert adapters.names == ("cars",)
    assert stack.ranks == (4,)
    assert stack.b.dtype == stack.a.dtype == np.float32
    close(samples.update(stack), samples.product(tensors[B], tensors[A], 8 / 4))
    assert adapters.sources[0].scales == {"h.0.fc": 2.0}


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_fan_in_fan_out_changes_the_layout_only(tmp_path, fan_in_fan_out):
    tensors = samples.linear()
    folder = samples.write(tmp_path / "a", tensors, fan_in_fan_out=fan_in_fan_out)
    adapters = load_one(folder)
    close(
        samples.update(adapters.stacks["h.0.fc"]),
        samples.product(tensors[B], tensors[A], 2),
    )
    layout = adapters.layouts["h.0.fc"]
    assert layout == io.Layout("linear", fan_in_fan_out=fan_in_fan_out)
    shape = (5, 6) if fan_in_fan_out else (6, 5)
    assert layout.to_weight(samples.update(adapters.stacks["h.0.fc"])).shape == shape


@pytest.mark.parametrize("kernel", [(3,), (1, 1), (3, 2), (2, 3, 2)])
def test_convolution_flattens_its_kernel(tmp_path, kernel):
    tensors = samples.conv(kernel=kernel)
    adapters = load_one(samples.write(tmp_path / "a", tensors))
    a = tensors["base_model.model.h.0.conv.lora_A.weight"]
    b = tensors["base_model.model.h.0.conv.lora_B.weight"]
    expected = 2 * np.einsum("mr,rckl->mckl", b.reshape(6, 4), a.reshape(4, 3, -1, 1))
    found = samples.update(adapters.stacks["h.0.conv"])
    close(found.reshape(expected.shape), expected)
    layout = adapters.layouts["h.0.conv"]
    assert (layout.kind, layout.kernel) == (f"conv{len(kernel)}d", kernel)
    assert layout.to_weight(found).shape == (6, 3, *kernel)


def test_embedding_update_is_transposed_on_the_weight(tmp_path):
    tensors = samples.embedding()
    adapters = load_one(samples.write(tmp_path / "a", tensors))
    stack = adapters.stacks["h.embed"]
    assert (stack.b.shape, stack.a.shape) == ((1, 6, 4), (1, 4, 11))
    a, b = tensors.values()
    close(
        adapters.layouts["h.embed"].to_weight(samples.update(stack)),
        samples.product(b, a, 2).T,
    )


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
    adapters = load_one(samples.write(tmp_path / "a", tensors, **config))
    assert adapters.sources[0].scales["h.0.fc"] == pytest.approx(scale, rel=1e-12)
    close(
        samples.update(adapters.stacks["h.0.fc"]),
        samples.product(tensors[B], tensors[A], scale),
    )


def test_old_config_without_later_fields(tmp_path):
    raw = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none",
        "target_modules": ["fc"], "fan_in_fan_out": False, "merge_weights": False,
        "enable_lora": None, "modules_to_save": None, "init_lora_weights": True,
        "base_model_name_or_path": "org/base", "inference_mode": True,
        "lora_dropout": 0.05, "task_type": "CAUSAL_LM",
    }  # fmt: skip
    adapters = load_one(samples.write(tmp_path / "a", raw_config=raw))
    assert adapters.sources[0].scales == {"h.0.fc": 2.0}
    assert adapters.sources[0].task_type == "CAUSAL_LM"


def test_missing_alpha_needs_an_assumption(tmp_path):
    raw = {key: value for key, value in samples.BASE.items() if key != "lora_alpha"}
    folder = samples.write(tmp_path / "a", raw_config=raw)
    with pytest.raises(io.AdapterError, match="assume_alpha"):
        load_one(folder)
    assert load_one(folder, assume_alpha=6).sources[0].scales["h.0.fc"] == 1.5
    assert load_one(folder, assume_alpha="rank").sources[0].scales["h.0.fc"] == 1.0
    given = samples.write(tmp_path / "b")
    assert load_one(given, assume_alpha=6).sources[0].scales["h.0.fc"] == 2.0


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_compute_in_float32(tmp_path, dtype):
    tensors = samples.linear(dtype=dtype)
    adapters = load_one(samples.write(tmp_path / "a", tensors))
    stack = adapters.stacks["h.0.fc"]
    assert stack.b.dtype == np.float32
    close(samples.update(stack), samples.product(tensors[B], tensors[A], 2))
    wanted = np.float32 if dtype == np.float64 else dtype
    assert adapters.dtype == np.dtype(wanted)


def test_mixed_dtypes_are_saved_as_float32(tmp_path):
    half = samples.write(tmp_path / "half", samples.linear(dtype=np.float16))
    brain = samples.write(tmp_path / "b16", samples.linear(dtype=ml_dtypes.bfloat16))
    assert io.load_peft([half, brain]).dtype == np.float32
    assert io.load_peft([half, half]).dtype == np.float16


def adalora(rank=3, m=6, n=5):
    start = "base_model.model.h.0.fc."
    return {
        f"{start}lora_A": samples.random(rank, n, seed=1),
        f"{start}lora_B": samples.random(m, rank, seed=2),
        f"{start}lora_E": samples.random(rank, 1, seed=3),
    }


ADALORA = {"peft_type": "ADALORA", "r": 8, "init_r": 12, "target_r": 4, "total_step": 9}


def test_adalora_divides_by_the_initial_rank(tmp_path):
    tensors = adalora()
    kept = {"h.0.fc.lora_E": [True] * 3 + [False] * 9}
    folder = samples.write(tmp_path / "a", tensors, **ADALORA, rank_pattern=kept)
    adapters = load_one(folder)
    stack, scale = adapters.stacks["h.0.fc"], adapters.sources[0].scales["h.0.fc"]
    assert scale == pytest.approx(8 / (12 + 1e-5), rel=1e-12)
    a, b, e = (x.astype(np.float64) for x in tensors.values())
    assert stack.ranks == (3,)
    close(samples.update(stack), 8 / (12 + 1e-5) * b @ (e * a))


def test_adalora_rank_must_be_explained(tmp_path):
    folder = samples.write(tmp_path / "a", adalora(), **ADALORA)
    with pytest.raises(io.AdapterError, match="rank 3 in its tensors but 12"):
        load_one(folder)
    full = samples.write(tmp_path / "b", adalora(12), **ADALORA)
    assert load_one(full).stacks["h.0.fc"].ranks == (12,)


def test_adalora_module_pruned_to_rank_zero_is_absent(tmp_path):
    tensors = adalora(0) | samples.linear("h.1.fc", seed=4)
    tensors |= {
        key.replace(".weight", ""): tensors.pop(key)
        for key in list(tensors)
        if key.endswith(".weight")
    }
    tensors["base_model.model.h.1.fc.lora_E"] = samples.random(4, 1)
    kept = {"h.0.fc.lora_E": [False] * 12, "h.1.fc.lora_E": [True] * 4 + [False] * 8}
    folder = samples.write(tmp_path / "a", tensors, **ADALORA, rank_pattern=kept)
    adapters = load_one(folder)
    assert list(adapters.stacks) == ["h.1.fc"]
    assert adapters.sources[0].zero_modules == ("h.0.fc",)


VERA = {"peft_type": "VERA", "r": 4, "projection_prng_key": 0, "save_projection": True}


def vera(modules=("h.0.fc",), m=6, n=5):
    tensors = {
        "base_model.vera_A": samples.random(4, n + 2, seed=1),
        "base_model.vera_B": samples.random(m + 3, 4, seed=2),
    }
    for seed, module in enumerate(modules):
        start = f"base_model.model.{module}.vera_lambda_"
        tensors[f"{start}b"] = samples.random(m, seed=3 + seed)
        tensors[f"{start}d"] = samples.random(4, seed=9 + seed)
    return tensors


def test_vera_is_scaled_shared_projections(tmp_path):
    tensors = vera(("h.0.fc", "h.1.fc"))
    folder = samples.write(tmp_path / "a", tensors, **VERA)
    with pytest.raises(io.AdapterError, match="vera_inputs"):
        load_one(folder)
    for inputs in (5, {"fc": 5}, {"fc": 7, "0.fc": 5, "h.1.fc": 5}):
        stacks = load_one(folder, vera_inputs=inputs).stacks
        for module in ("h.0.fc", "h.1.fc"):
            start = f"base_model.model.{module}.vera_lambda_"
            expected = (
                tensors[f"{start}b"][:, None] * tensors["base_model.vera_B"][:6]
            ) @ (tensors[f"{start}d"][:, None] * tensors["base_model.vera_A"][:, :5])
            close(samples.update(stacks[module]), expected)


def test_vera_of_one_module_tells_its_own_input_size(tmp_path):
    folder = samples.write(tmp_path / "a", vera(), **VERA)
    assert load_one(folder).stacks["h.0.fc"].a.shape == (1, 4, 7)


def test_vera_without_projections_is_refused(tmp_path):
    tensors = {key: x for key, x in vera().items() if "vera_A" not in key}
    with pytest.raises(io.AdapterError, match="save_projection=True"):
        load_one(samples.write(tmp_path / "a", tensors, **VERA))


def test_lora_bias_has_the_scale_folded_in(tmp_path):
    tensors = samples.linear(bias=True) | samples.linear("h.1.fc", seed=5)
    plain = samples.write(tmp_path / "plain", samples.linear())
    folder = samples.write(tmp_path / "bias", tensors, lora_bias=True)
    adapters = io.load_peft([plain, folder])
    assert list(adapters.biases) == ["h.0.fc"]
    expected = 2 * tensors["base_model.model.h.0.fc.lora_B.bias"]
    np.testing.assert_allclose(adapters.biases["h.0.fc"], [0 * expected, expected])


@pytest.mark.parametrize("name", ["default", "my-adapter"])
def test_adapter_name_in_the_keys(tmp_path, name):
    tensors = samples.linear() | samples.embedding()
    renamed = {
        key.replace(".lora_A.", f".lora_A.{name}.").replace(
            ".lora_B.", f".lora_B.{name}."
        )
        + (f".{name}" if "embedding" in key else ""): value
        for key, value in tensors.items()
    }
    plain = load_one(samples.write(tmp_path / "a", tensors))
    named = load_one(samples.write(tmp_path / "b", renamed))
    assert plain.stacks.keys() == named.stacks.keys()
    for module, stack in plain.stacks.items():
        np.testing.assert_array_equal(stack.b, named.stacks[module].b)
    both = samples.write(tmp_path / "c", renamed | samples.linear("h.7.fc"))
    with pytest.raises(io.AdapterError, match="several adapters"):
        load_one(both)


def test_mixed_ranks_and_partial_coverage(tmp_path):
    one = samples.write(tmp_path / "one", samples.linear(r=2, seed=3), r=2)
    two = samples.write(
        tmp_path / "two", samples.linear() | samples.linear("h.1.fc", seed=8)
    )
    adapters = io.load_peft([one, two])
    assert adapters.stacks["h.0.fc"].ranks == (2, 4)
    assert adapters.stacks["h.1.fc"].ranks == (0, 4)


def test_zero_module_counts_as_absent_and_zero_adapter_is_refused(tmp_path):
    tensors = samples.linear() | samples.linear("h.1.fc", seed=8)
    tensors["base_model.model.h.1.fc.lora_B.weight"][:] = 0
    some = samples.write(tmp_path / "some", tensors)
    other = samples.write(tmp_path / "other", samples.linear("h.1.fc", seed=3))
    adapters = io.load_peft([some, other])
    assert adapters.stacks["h.1.fc"].ranks == (0, 4)
    assert adapters.sources[0].zero_modules == ("h.1.fc",)
    plan = io.plan_peft([some, other], read_tensors=True)
    assert plan.adapters[0].zero_modules == ("h.1.fc",)
    assert io.plan_peft([some, other]).adapters[0].zero_modules is None
    tensors[B][:] = 0
    zero = samples.write(tmp_path / "zero", tensors)
    with pytest.raises(io.AdapterError, match="exactly zero"):
        io.load_peft([zero, other])
    assert io.load_peft([zero, other], allow_zero=True).stacks["h.1.fc"].ranks == (0, 4)


def with_head(shape=(3, 6), seed=0, name="classifier"):
    return samples.linear() | {
        f"base_model.model.{name}.weight": samples.random(*shape, seed=seed),
        f"base_model.model.{name}.bias": samples.random(shape[0], seed=seed),
    }


def test_heads_policies(tmp_path):
    one = samples.write(tmp_path / "one", with_head(), modules_to_save=["classifier"])
    two = samples.write(tmp_path / "two", with_head(seed=1))  # not listed: also a head
    plain = samples.write(tmp_path / "plain")
    with pytest.raises(io.AdapterError, match=r"classifier.*heads='keep'"):
        io.load_peft([plain, one, two])
    adapters = io.load_peft([plain, one, two], heads="keep")
    assert [sorted(heads) for heads in adapters.heads] == [
        [], *[["classifier.bias", "classifier.weight"]] * 2
    ]  # fmt: skip
    np.testing.assert_array_equal(
        adapters.heads[2]["classifier.weight"],
        with_head(seed=1)["base_model.model.classifier.weight"],
    )
    assert adapters.options.heads == "keep"
    wide = samples.write(tmp_path / "wide", with_head((4, 6)))
    with pytest.raises(io.AdapterError, match="no mean"):
        io.load_peft([one, wide], heads="mean")
    with pytest.raises(io.AdapterError, match="expected one of"):
        io.load_peft([one], heads="average")


def test_wrapped_modules_to_save_are_unwrapped(tmp_path):
    tensors = samples.linear() | {
        "base_model.model.score.modules_to_save.default.running_mean": samples.random(3)
    }
    folder = samples.write(tmp_path / "a", tensors, modules_to_save=["score"])
    assert list(load_one(folder, heads="keep").heads[0]) == ["score.running_mean"]


def test_a_key_that_is_not_understood_is_an_error(tmp_path):
    for strange in ("w_a_000", "h.0.fc.lora_C.weight", "h.0.fc.lora_A.x.y.weight"):
        tensors = samples.linear() | {f"base_model.model.{strange}": samples.random(3)}
        with pytest.raises(io.AdapterError, match=strange.split(".")[0]):
            load_one(samples.write(tmp_path / strange.replace(".", "_"), tensors))


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
    assert list(load_one(samples.write(tmp_path / "bare", bare)).stacks) == ["h.0.fc"]
    mixed = bare | samples.linear("h.1.fc")
    with pytest.raises(io.AdapterError, match="mixes two layouts"):
        load_one(samples.write(tmp_path / "mixed", mixed))


def test_patterns_see_the_names_of_the_file(tmp_path):
    folder = samples.write(
        tmp_path / "a",
        samples.linear("vision.h.0.fc"),
        alpha_pattern={"vision.h.0.fc": 40},
    )
    adapters = load_one(folder, strip_prefix="vision.")
    assert adapters.sources[0].scales == {"h.0.fc": 10.0}


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


def test_rank_that_contradicts_the_config(tmp_path):
    folder = samples.write(tmp_path / "a", r=8)
    with pytest.raises(io.AdapterError, match=r"'h\.0\.fc' has rank 4.*but 8"):
        load_one(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"heads": "average"}, {"assume_alpha": "16"}, {"assume_alpha": 0},
        {"assume_alpha": float("nan")}, {"weights": "pt"}, {"layout": "kohya"},
        {"vera_inputs": "5"}, {"vera_inputs": {"fc": 0}},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(tmp_path, options):
    folder = samples.write(tmp_path / "a")
    for read in (io.load_peft, io.plan_peft):
        with pytest.raises(io.AdapterError, match=next(iter(options))):
            read([folder], **options)


def test_two_weight_files(tmp_path):
    torch = pytest.importorskip("torch")
    folder = samples.write(tmp_path / "a")
    other = {k: torch.from_numpy(2 * v) for k, v in samples.linear().items()}
    torch.save(other, folder / "adapter_model.bin")
    with pytest.raises(io.AdapterError, match=r"both.*safetensors.*\.bin"):
        load_one(folder)
    first = load_one(folder, weights="safetensors").stacks["h.0.fc"]
    second = load_one(folder, weights="bin").stacks["h.0.fc"]
    close(samples.update(second), 4 * samples.update(first))


def test_equivalent_files_give_one_update(tmp_path):
    """Formats, key styles, gauges and spellings of the scale do not matter."""
    torch = pytest.importorskip("torch")
    tensors = samples.linear()
    reference = load_one(samples.write(tmp_path / "reference", tensors))
    expected = samples.update(reference.stacks["h.0.fc"])
    ways = {
        "rslora": (tensors, {"use_rslora": True, "lora_alpha": 4}),
        "alpha_pattern": (tensors, {"alpha_pattern": {"fc": 8}, "lora_alpha": 1}),
        "rank_pattern": (tensors, {"rank_pattern": {"h.0.fc": 4}, "r": 64}),
        "gauge": ({A: tensors[A] * 8, B: tensors[B] / 8}, {}),
        "into_b": ({A: tensors[A], B: tensors[B] * 4}, {"lora_alpha": 2}),
        "default": (
            {k.replace(".weight", ".default.weight"): v for k, v in tensors.items()},
            {},
        ),
    }
    for name, (values, config) in ways.items():
        found = load_one(samples.write(tmp_path / name, values, **config))
        close(samples.update(found.stacks["h.0.fc"]), expected, 1e-6)
    for name, legacy in (("zip", False), ("stream", True)):
        folder = samples.write(tmp_path / name)
        (folder / "adapter_model.safetensors").unlink()
        torch.save(
            {k: torch.from_numpy(v) for k, v in tensors.items()},
            folder / "adapter_model.bin",
            _use_new_zipfile_serialization=not legacy,
        )
        found = load_one(folder)
        np.testing.assert_array_equal(
            found.stacks["h.0.fc"].b, reference.stacks["h.0.fc"].b
        )
    brain = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    found = load_one(samples.write(tmp_path / "bf16", brain))
    close(samples.update(found.stacks["h.0.fc"]), expected, 2**-6)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_hold_views_and_other_types(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    big = torch.from_numpy(samples.random(10, 10))
    content = {
        "base_model.model.h.0.fc.lora_A.weight": big[2:6, 1:6],
        "base_model.model.h.0.fc.lora_B.weight": torch.nn.Parameter(big.T[:6, :4]),
        "base_model.model.norm.num_batches_tracked": torch.tensor(7),
        "base_model.model.norm.weight": big[0].to(torch.bfloat16),
    }
    folder = samples.write(tmp_path / "a", modules_to_save=["norm"], r=4)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(
        content, folder / "adapter_model.bin", _use_new_zipfile_serialization=not legacy
    )
    adapters = load_one(folder, heads="keep")
    close(
        samples.update(adapters.stacks["h.0.fc"]),
        2 * (big.T[:6, :4] @ big[2:6, 1:6]).numpy().astype(np.float64),
    )
    heads = adapters.heads[0]
    assert heads["norm.num_batches_tracked"] == 7
    assert heads["norm.weight"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
        heads["norm.weight"].astype(np.float32),
        big[0].to(torch.bfloat16).float().numpy(),
    )


REFUSED = [
    ({"peft_type": "LOHA"}, "LOHA"),
    ({"peft_type": None}, "peft_type"),
    ({"use_dora": True}, "DoRA"),
    ({"init_lora_weights": "pissa_niter_16"}, "PiSSA"),
    ({"init_lora_weights": "olora"}, "OLoRA"),
    ({"init_lora_weights": "corda"}, "CorDA"),
    ({"init_lora_weights": "loftq"}, "LoftQ"),
    ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
    ({"init_lora_weights": "unheard_of"}, "unheard_of"),
    ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
    ({"megatron_config": {"tensor_model_parallel_size": 2}}, "megatron_config"),
    ({"use_qalora": True}, "use_qalora"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
    ({"monteclora_config": {"num_samples": 8}}, "monteclora_config"),
    ({"arrow_config": {"top_k": 3}}, "arrow_config"),
    ({"alora_invocation_tokens": [1, 2]}, "alora"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "3-D experts"),
    ({"trainable_token_indices": [7]}, "trainable_token_indices"),
    ({"ensure_weight_tying": True}, "ensure_weight_tying"),
    ({"enable_lora": [True, False, True]}, "enable_lora"),
    ({"bias": "lora_only"}, "bias"),
    ({"brand_new_option": 3}, "brand_new_option"),
]
HARMLESS = {
    "brand_new_option": None, "another": False, "third": [], "fourth": {}, "fifth": "",
    "eva_config": {"rho": 2.0}, "velora_config": {"num_groups": 2},
    "init_lora_weights": "gaussian", "peft_version": "9.9", "lora_dropout": 0.1,
    "megatron_core": "megatron.core", "qalora_group_size": 16, "loftq_config": {},
    "layers_to_transform": [0, 1], "layers_pattern": "h", "exclude_modules": ["x"],
    "use_dora": False, "target_parameters": [], "arrow_config": None,
}  # fmt: skip


@pytest.mark.parametrize(("config", "named"), REFUSED)
def test_what_changes_the_meaning_is_refused_by_name(tmp_path, config, named):
    folder = samples.write(tmp_path / "a", **config)
    with pytest.raises(io.AdapterError, match=named) as caught:
        load_one(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(io.AdapterError, match=named):
        io.plan_peft([folder])


def test_what_is_harmless_is_accepted(tmp_path):
    adapters = load_one(samples.write(tmp_path / "a", **HARMLESS))
    assert adapters.sources[0].scales == {"h.0.fc": 2.0}
    folder = samples.write(tmp_path / "b", brand_new_option=3)
    assert load_one(folder, ignore_config_keys=["brand_new_option"]).stacks


@pytest.mark.parametrize(
    ("leaf", "named"),
    [
        ("h.0.fc.lora_magnitude_vector", "DoRA"),
        ("h.0.fc.lora_magnitude_vector.default.weight", "DoRA"),
        ("h.0.fc.lora_diag", "KaSA"),
        ("embed.token_adapter.trainable_tokens_delta", "embedding rows"),
        ("experts.base_layer.lora_A.weight", "3-D experts"),
    ],
)
def test_tensors_of_variants_are_refused(tmp_path, leaf, named):
    tensors = samples.linear() | {f"base_model.model.{leaf}": samples.random(6)}
    with pytest.raises(io.AdapterError, match=named):
        load_one(samples.write(tmp_path / "a", tensors))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_and_infinity_name_the_tensor(tmp_path, value, dtype):
    tensors = samples.linear(dtype=dtype)
    tensors[B][2, 1] = value
    folder = samples.write(tmp_path / "a", tensors)
    with pytest.raises(io.AdapterError, match=r"lora_B\.weight.*NaN or infinite"):
        load_one(folder)
    assert io.plan_peft([folder]).rank == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflow_of_float32_is_refused(tmp_path, dtype):
    tensors = samples.linear(dtype=dtype)
    tensors[B][0, 0] = 3e38 if dtype == np.float32 else 3e300
    with pytest.raises(io.AdapterError, match=r"lora_B\.weight.*(overflow|infinite)"):
        load_one(samples.write(tmp_path / "a", tensors, lora_alpha=100))


@pytest.mark.parametrize(
    "change",
    [
        {A: None},
        {B: samples.random(6, 3)},
        {A: samples.random(4, 5, 1)},
        {A: samples.random(4)},
        {A: np.ones((4, 5), np.int8)},
        {"base_model.model.h.0.fc.lora_B.bias": samples.random(5)},
        {"base_model.model.h.0.fc.lora_embedding_A": samples.random(4, 5)},
        {"base_model.vera_A": samples.random(4, 5)},
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change):
    tensors = {k: v for k, v in (samples.linear() | change).items() if v is not None}
    with pytest.raises(io.AdapterError, match=r"adapter_model\.safetensors"):
        load_one(samples.write(tmp_path / "a", tensors))


def test_grouped_convolution_is_refused(tmp_path):
    tensors = samples.conv()
    tensors["base_model.model.h.0.conv.lora_B.weight"] = samples.random(6, 2, 1, 1)
    with pytest.raises(io.AdapterError, match="grouped convolution"):
        load_one(samples.write(tmp_path / "a", tensors))


def test_task_names_are_unique(tmp_path):
    folders = [samples.write(tmp_path / seed / "cars") for seed in ("s0", "s1")]
    folders += [samples.write(tmp_path / "dtd"), tmp_path / "dtd"]
    assert io.load_peft(folders).names == ("s0-cars", "s1-cars", "dtd", "dtd-2")


def test_sources_record_provenance(tmp_path):
    folder = samples.write(tmp_path / "a", revision="abc")
    (source,) = load_one(folder).sources
    assert source.path == str(folder)
    assert source.base_model == "org/base"
    assert source.revision == "abc"
    assert source.config == json.loads((folder / "adapter_config.json").read_text())
    assert sorted(source.sha256) == ["adapter_config.json", "adapter_model.safetensors"]
    assert source.sha256["adapter_config.json"] == _sha256(
        folder / "adapter_config.json"
    )


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_plan_reads_headers_only(tmp_path, monkeypatch):
    def fail(self, key):
        raise AssertionError(f"{key} was read")

    monkeypatch.setattr(tensors_module.SafetensorsFile, "read", fail)
    one = samples.write(tmp_path / "one", samples.linear(r=2), r=2)
    two = samples.write(
        tmp_path / "two",
        with_head() | samples.linear("h.1.fc", m=40, n=30, seed=2),
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
    assert any("1 of 2 modules" in note for note in plan.notes)
    assert any("above what 1 modules can hold" in note for note in plan.notes)
    json.dumps(plan.to_json())
    assert io.plan_peft([one, two], heads="keep").conflicts == ()


def test_plan_finds_every_conflict_at_once(tmp_path):
    one = samples.write(tmp_path / "one", with_head())
    two = samples.write(
        tmp_path / "two", samples.linear(n=7), base_model_name_or_path="org/other"
    )
    kinds = [conflict.kind for conflict in io.plan_peft([one, two]).conflicts]
    assert sorted(kinds) == ["base", "heads", "shape"]
    with pytest.raises(io.AdapterError, match="2 more conflicts"):
        io.load_peft([one, two])


def test_plan_warns_above_what_vllm_takes(tmp_path):
    tensors = samples.linear(m=600, n=600, r=300)
    one = samples.write(tmp_path / "one", tensors, r=300)
    two = samples.write(tmp_path / "two", tensors, r=300)
    plan = io.plan_peft([one, two])
    assert (plan.rank, plan.max_lora_rank) == (600, None)
    assert any("vLLM" in note for note in plan.notes)


def test_folders_must_be_a_list_of_folders(tmp_path):
    folder = samples.write(tmp_path / "a")
    with pytest.raises(io.AdapterError, match="list of adapter folders"):
        io.load_peft(folder)
    with pytest.raises(io.AdapterError, match="no adapter folder"):
        io.load_peft([])
    with pytest.raises(io.AdapterError, match="no such folder"):
        io.load_peft([tmp_path / "nowhere"])
    with pytest.raises(io.AdapterError, match="not a folder"):
        io.load_peft([folder / "adapter_config.json"])


def test_metadata_of_safetensors_is_not_a_tensor(tmp_path):
    folder = samples.write(tmp_path / "a")
    safetensors.numpy.save_file(
        samples.linear(),
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    assert list(load_one(folder).stacks) == ["h.0.fc"]
