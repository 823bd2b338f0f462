"""Reading PEFT folders: one module of every kind, names, keys, provenance."""

import hashlib
import json

import io_samples as samples
import numpy as np
import pytest

from jaxmerge import io


def test_linear_update_is_scale_times_b_a(tmp_path):
    tensors = samples.linear()
    adapters = samples.load_one(samples.write(tmp_path / "cars", tensors))
    stack = adapters.stacks["h.0.fc"]
    assert adapters.names == ("cars",)
    assert stack.ranks == (4,)
    assert stack.b.dtype == stack.a.dtype == np.float32
    samples.close(
        samples.update(stack),
        samples.product(tensors[samples.KEY_B], tensors[samples.KEY_A], 8 / 4),
    )
    assert adapters.sources[0].scales == {"h.0.fc": 2.0}


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_fan_in_fan_out_changes_the_layout_only(tmp_path, fan_in_fan_out):
    tensors = samples.linear()
    folder = samples.write(tmp_path / "a", tensors, fan_in_fan_out=fan_in_fan_out)
    adapters = samples.load_one(folder)
    samples.close(
        samples.update(adapters.stacks["h.0.fc"]),
        samples.product(tensors[samples.KEY_B], tensors[samples.KEY_A], 2),
    )
    layout = adapters.layouts["h.0.fc"]
    assert layout == io.Layout("linear", fan_in_fan_out=fan_in_fan_out)
    shape = (5, 6) if fan_in_fan_out else (6, 5)
    assert layout.to_weight(samples.update(adapters.stacks["h.0.fc"])).shape == shape


@pytest.mark.parametrize("kernel", [(3,), (1, 1), (3, 2), (2, 3, 2)])
def test_convolution_flattens_its_kernel(tmp_path, kernel):
    tensors = samples.conv(kernel=kernel)
    adapters = samples.load_one(samples.write(tmp_path / "a", tensors))
    a = tensors["base_model.model.h.0.conv.lora_A.weight"]
    b = tensors["base_model.model.h.0.conv.lora_B.weight"]
    expected = 2 * np.einsum("mr,rckl->mckl", b.reshape(6, 4), a.reshape(4, 3, -1, 1))
    found = samples.update(adapters.stacks["h.0.conv"])
    samples.close(found.reshape(expected.shape), expected)
    layout = adapters.layouts["h.0.conv"]
    assert (layout.kind, layout.kernel) == (f"conv{len(kernel)}d", kernel)
    assert layout.to_weight(found).shape == (6, 3, *kernel)


def test_embedding_update_is_transposed_on_the_weight(tmp_path):
    tensors = samples.embedding()
    adapters = samples.load_one(samples.write(tmp_path / "a", tensors))
    stack = adapters.stacks["h.embed"]
    assert (stack.b.shape, stack.a.shape) == ((1, 6, 4), (1, 4, 11))
    a, b = tensors.values()
    samples.close(
        adapters.layouts["h.embed"].to_weight(samples.update(stack)),
        samples.product(b, a, 2).T,
    )


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
    plain = samples.load_one(samples.write(tmp_path / "a", tensors))
    named = samples.load_one(samples.write(tmp_path / "b", renamed))
    assert plain.stacks.keys() == named.stacks.keys()
    for module, stack in plain.stacks.items():
        np.testing.assert_array_equal(stack.b, named.stacks[module].b)
    both = samples.write(tmp_path / "c", renamed | samples.linear("h.7.fc"))
    with pytest.raises(io.AdapterError, match="several adapters"):
        samples.load_one(both)


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
    tensors[samples.KEY_B][:] = 0
    zero = samples.write(tmp_path / "zero", tensors)
    with pytest.raises(io.AdapterError, match="exactly zero"):
        io.load_peft([zero, other])
    assert io.load_peft([zero, other], allow_zero=True).stacks["h.1.fc"].ranks == (0, 4)


def test_a_key_that_is_not_understood_is_an_error(tmp_path):
    for strange in ("w_a_000", "h.0.fc.lora_C.weight", "h.0.fc.lora_A.x.y.weight"):
        tensors = samples.linear() | {f"base_model.model.{strange}": samples.random(3)}
        with pytest.raises(io.AdapterError, match=strange.split(".")[0]):
            samples.load_one(
                samples.write(tmp_path / strange.replace(".", "_"), tensors)
            )


@pytest.mark.parametrize(
    "options",
    [
        {"heads": "average"}, {"assume_alpha": "16"}, {"assume_alpha": 0},
        {"assume_alpha": float("nan")}, {"weight_file": "pt"}, {"layout": "kohya"},
        {"vera_inputs": "5"}, {"vera_inputs": {"fc": 0}},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(tmp_path, options):
    folder = samples.write(tmp_path / "a")
    for read in (io.load_peft, io.plan_peft):
        with pytest.raises(io.AdapterError, match=next(iter(options))):
            read([folder], **options)


def test_task_names_are_unique(tmp_path):
    folders = [samples.write(tmp_path / seed / "cars") for seed in ("s0", "s1")]
    folders += [samples.write(tmp_path / "dtd"), tmp_path / "dtd"]
    assert io.load_peft(folders).names == ("s0-cars", "s1-cars", "dtd", "dtd-2")


def test_sources_record_provenance(tmp_path):
    folder = samples.write(tmp_path / "a", revision="abc")
    (source,) = samples.load_one(folder).sources
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
