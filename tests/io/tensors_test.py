"""Tensors of every file format, and those that cannot be merged."""

import io_samples as samples
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxmerge import io


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_compute_in_float32(tmp_path, dtype):
    tensors = samples.linear(dtype=dtype)
    adapters = samples.load_one(samples.write(tmp_path / "a", tensors))
    stack = adapters.stacks["h.0.fc"]
    assert stack.b.dtype == np.float32
    samples.close(
        samples.update(stack),
        samples.product(tensors[samples.KEY_B], tensors[samples.KEY_A], 2),
    )
    wanted = np.float32 if dtype == np.float64 else dtype
    assert adapters.dtype == np.dtype(wanted)


def test_mixed_dtypes_are_saved_as_float32(tmp_path):
    half = samples.write(tmp_path / "half", samples.linear(dtype=np.float16))
    brain = samples.write(tmp_path / "b16", samples.linear(dtype=ml_dtypes.bfloat16))
    assert io.load_peft([half, brain]).dtype == np.float32
    assert io.load_peft([half, half]).dtype == np.float16


def test_two_weight_files(tmp_path):
    torch = pytest.importorskip("torch")
    folder = samples.write(tmp_path / "a")
    other = {k: torch.from_numpy(2 * v) for k, v in samples.linear().items()}
    torch.save(other, folder / "adapter_model.bin")
    with pytest.raises(io.AdapterError, match=r"both.*safetensors.*\.bin"):
        samples.load_one(folder)
    first = samples.load_one(folder, weight_file="safetensors").stacks["h.0.fc"]
    second = samples.load_one(folder, weight_file="bin").stacks["h.0.fc"]
    samples.close(samples.update(second), 4 * samples.update(first))


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
    adapters = samples.load_one(folder, heads="keep")
    samples.close(
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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_and_infinity_name_the_tensor(tmp_path, value, dtype):
    tensors = samples.linear(dtype=dtype)
    tensors[samples.KEY_B][2, 1] = value
    folder = samples.write(tmp_path / "a", tensors)
    with pytest.raises(io.AdapterError, match=r"lora_B\.weight.*NaN or infinite"):
        samples.load_one(folder)
    assert io.plan_peft([folder]).rank == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflow_of_float32_is_refused(tmp_path, dtype):
    tensors = samples.linear(dtype=dtype)
    tensors[samples.KEY_B][0, 0] = 3e38 if dtype == np.float32 else 3e300
    with pytest.raises(io.AdapterError, match=r"lora_B\.weight.*(overflow|infinite)"):
        samples.load_one(samples.write(tmp_path / "a", tensors, lora_alpha=100))


@pytest.mark.parametrize(
    "change",
    [
        {samples.KEY_A: None},
        {samples.KEY_B: samples.random(6, 3)},
        {samples.KEY_A: samples.random(4, 5, 1)},
        {samples.KEY_A: samples.random(4)},
        {samples.KEY_A: np.ones((4, 5), np.int8)},
        {"base_model.model.h.0.fc.lora_B.bias": samples.random(5)},
        {"base_model.model.h.0.fc.lora_embedding_A": samples.random(4, 5)},
        {"base_model.vera_A": samples.random(4, 5)},
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change):
    tensors = {k: v for k, v in (samples.linear() | change).items() if v is not None}
    with pytest.raises(io.AdapterError, match=r"adapter_model\.safetensors"):
        samples.load_one(samples.write(tmp_path / "a", tensors))


def test_grouped_convolution_is_refused(tmp_path):
    tensors = samples.conv()
    tensors["base_model.model.h.0.conv.lora_B.weight"] = samples.random(6, 2, 1, 1)
    with pytest.raises(io.AdapterError, match="grouped convolution"):
        samples.load_one(samples.write(tmp_path / "a", tensors))


def test_metadata_of_safetensors_is_not_a_tensor(tmp_path):
    folder = samples.write(tmp_path / "a")
    safetensors.numpy.save_file(
        samples.linear(),
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    assert list(samples.load_one(folder).stacks) == ["h.0.fc"]


FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("file", [samples.SAFE, samples.BIN])
def test_float8_is_read_exactly(tmp_path, dtype, file):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {k: torch.from_numpy(v) for k, v in samples.linear().items()}
    narrow = {k: v.to(getattr(torch, dtype)) for k, v in tensors.items()}
    folder = samples.write(tmp_path / "a")
    (folder / samples.SAFE).unlink()
    (save_file if file == samples.SAFE else torch.save)(narrow, folder / file)
    adapters = samples.load_one(folder)
    stack, exact = adapters.stacks["h.0.fc"], {k: v.float() for k, v in narrow.items()}
    np.testing.assert_array_equal(stack.a[0], exact[samples.KEY_A].numpy())
    np.testing.assert_array_equal(stack.b[0], 2 * exact[samples.KEY_B].numpy())
    assert (adapters.sources[0].dtype, adapters.dtype) == (dtype, np.float32)


def test_saved_modules_in_float8_become_float32(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    head = torch.ones(3, 3).to(torch.float8_e5m2)
    tensors = {k: torch.from_numpy(v) for k, v in samples.linear().items()}
    folder = samples.write(tmp_path / "a")
    save_file(tensors | {"base_model.model.score.weight": head}, folder / samples.SAFE)
    (heads,) = samples.load_one(folder, heads="keep").heads
    np.testing.assert_array_equal(heads["score.weight"], np.ones((3, 3), np.float32))


@pytest.mark.parametrize(
    "leaf", ["weight_scale", "weight_scale_inv", "weight.absmax", "scale_weight"]
)
def test_factors_with_scales_of_their_own_are_refused(tmp_path, leaf):
    scale = {f"base_model.model.h.0.fc.lora_A.{leaf}": samples.random(1)}
    folder = samples.write(tmp_path / "a", samples.linear() | scale)
    with pytest.raises(io.AdapterError, match="a scale of quantised factors"):
        samples.load_one(folder)


def test_float8_survives_a_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {k: torch.from_numpy(v) for k, v in samples.linear().items()}
    folder = samples.write(tmp_path / "a")
    narrow = {k: v.to(torch.float8_e4m3fn) for k, v in tensors.items()}
    save_file(narrow, folder / samples.SAFE)
    io.save_orbax(tmp_path / "b", samples.load_one(folder))
    back = io.load_orbax(tmp_path / "b")
    assert isinstance(back, io.Adapters)
    assert back.sources[0].dtype == "float8_e4m3fn"


def test_float8_with_nan_is_refused(tmp_path):
    ml = samples.linear(dtype=ml_dtypes.float8_e5m2)
    ml[samples.KEY_B][0, 0] = np.nan
    data, header = b"", {}
    for key, value in ml.items():
        places = [len(data), len(data) + value.size]
        header[key] = {"dtype": "F8_E5M2", "shape": value.shape, "data_offsets": places}
        data += value.tobytes()
    folder = samples.write(tmp_path / "a")
    (folder / samples.SAFE).write_bytes(samples.header_file(header, data))
    with pytest.raises(io.AdapterError, match="NaN or infinite"):
        samples.load_one(folder)
