"""Merges that PEFT makes too, and layers that it treats in its own way."""

import copy

import io_samples as samples
import numpy as np
import pytest
from io_peft_net import (
    INPUTS,
    deltas,
    forward,
    in_weight_shape,
    patched,
    peft,
    reloaded,
    safetensors_torch,
    torch,
    train,
)
from tiers import in_turn

import jaxmerge as jm
from jaxmerge import io
from jaxmerge.types import LowRank
from jaxmerge.updates import dense, truncate

pytest_plugins = ["io_fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch and PEFT


def test_embedding_matrix_saved_beside_its_lora(net, tmp_path):
    """PEFT saves targeted or resized embeddings in full; they travel as heads."""
    train(net, tmp_path / "in", seed=1, r=2, target_modules=["embed", "fc"])
    path = tmp_path / "in" / "adapter_model.safetensors"
    tensors = safetensors_torch.load_file(path)
    matrix = torch.full((11, 6), 0.5)
    tensors["base_model.model.embed.base_layer.weight"] = matrix
    safetensors_torch.save_file(tensors, path)
    adapters = io.load_peft([tmp_path / "in"], heads="first")
    assert list(adapters.heads[0]) == ["embed.base_layer.weight"]
    updates = samples.summed(adapters)
    io.save_peft(tmp_path / "out", updates, like=adapters)
    config = (tmp_path / "out" / "adapter_config.json").read_text()
    assert "modules_to_save" not in config
    changed = copy.deepcopy(net)
    with torch.no_grad():
        changed.embed.weight.copy_(matrix)
    np.testing.assert_allclose(
        forward(reloaded(net, tmp_path / "out")),
        forward(patched(changed, adapters, updates)),
        rtol=1e-5,
        atol=1e-5,
    )


LINEAR = ["fc", "block.fc", "turned"]


def combined(net, folders, weights, **how):
    """PEFT's own merge of saved adapters."""
    model = peft.PeftModel.from_pretrained(copy.deepcopy(net), folders[0], "t0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, f"t{number}")
    names = [f"t{number}" for number in range(len(folders))]
    model.add_weighted_adapter(names, weights, "default", **how)
    model.set_adapter("default")
    return model.eval()


def test_cat_and_svd_of_peft_agree(net, tmp_path):
    """With alpha = r and with alpha != r; every kind that PEFT combines."""
    configs = [{"r": 4, "lora_alpha": 8}, {"r": 2, "lora_alpha": 3}]
    for seed, config in enumerate(configs):
        train(net, tmp_path / str(seed), seed=seed, target_modules=LINEAR, **config)
    folders, weights = [tmp_path / "0", tmp_path / "1"], [0.6, 0.9]
    adapters = io.load_peft(folders)
    updates = {m: samples.concatenated(s, weights) for m, s in adapters.stacks.items()}
    for how, rank in (("cat", None), ("svd", 3)):
        rank_option = {"svd_rank": rank} if rank else {}
        model = combined(net, folders, weights, combination_type=how, **rank_option)
        for module, delta in deltas(model).items():
            ours = (
                updates[module]
                if rank is None
                else truncate(updates[module], rank=rank)
            )
            ours = in_weight_shape(
                adapters.layouts[module], np.asarray(dense(ours)), delta.shape
            )
            np.testing.assert_allclose(delta, ours, rtol=1e-4, atol=1e-5)


def test_single_adapter_survives_unchanged(net, tmp_path):
    """Reading an adapter and writing it back keeps what the model computes."""
    for name, config in INPUTS.items():
        model = train(net, tmp_path / name, seed=3, **config)
        adapters = io.load_peft([tmp_path / name])
        updates = {
            m: LowRank(b=stack.b[0], a=stack.a[0])
            for m, stack in adapters.stacks.items()
        }
        biases = {m: b[0] for m, b in adapters.biases.items()}
        out = tmp_path / f"{name} again"
        io.save_peft(out, updates, like=adapters, biases=biases)
        np.testing.assert_allclose(
            forward(reloaded(net, out)), forward(model), rtol=1e-5, atol=1e-5
        )


class Attention(torch.nn.Module):
    """Torch's own attention, whose output projection PEFT nests in a base layer."""

    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens):
        x = torch.nn.functional.one_hot(tokens % 8, 8).float()
        return self.attention(x, x, x)[0]


def test_multihead_attention(tmp_path):
    torch.manual_seed(0)
    plain = Attention().eval()
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["attention"]}
    model = train(plain, tmp_path / "in", seed=1, **config)
    adapters = io.load_peft([tmp_path / "in"])
    assert sorted(adapters.stacks) == ["attention", "attention.base_layer.out_proj"]
    updates = samples.summed(adapters)
    io.save_peft(tmp_path / "out", updates, like=adapters)
    found = forward(reloaded(plain, tmp_path / "out"))
    np.testing.assert_allclose(found, forward(model), rtol=1e-5, atol=1e-6)
    assert np.abs(found - forward(plain)).max() > 1e-2


COMBINED = {  # combination type -> weights and what it is given beside them
    "cat": ([0.6, 0.9], {}),
    "svd": ([0.6, 0.9], {"svd_rank": 3}),
    "magnitude_prune_svd": ([0.6, 0.9], {"density": 0.5, "svd_rank": 3}),
    "dare_linear_svd": ([0.6, 0.9], {"density": 1.0, "svd_rank": 3}),
    "ties_svd": ([0.7, 0.7], {"density": 0.5, "svd_rank": 3}),
    "dare_ties_svd": ([0.7, 0.7], {"density": 1.0, "svd_rank": 3}),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two adapters, with alpha = r and with alpha != r."""
    from io_peft_net import Net

    place = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    plain = Net().eval()
    for seed, config in enumerate(
        [{"r": 4, "lora_alpha": 8}, {"r": 2, "lora_alpha": 3}]
    ):
        train(plain, place / str(seed), seed=seed, target_modules=LINEAR, **config)
    return plain, [place / "0", place / "1"]


@pytest.mark.thorough
@pytest.mark.parametrize("method", in_turn([*COMBINED], quick=3))
def test_a_recipe_with_a_combination_type_is_the_merge_of_peft(pair, tmp_path, method):
    """Random dropping is the same at density 1, where nothing is drawn."""
    plain, folders = pair
    weights, how = COMBINED[method]
    parameters = {"density": how["density"]} if "density" in how else {}
    recipe = {
        "adapters": [
            {"adapter": str(f), "parameters": {"weight": w, **parameters}}
            for f, w in zip(folders, weights, strict=True)
        ],
        "merge_method": method,
        "parameters": {k: v for k, v in how.items() if k != "density"},
        "seed": 0,
    }
    jm.run_recipe(recipe, out=tmp_path / "out")
    model = combined(plain, folders, weights, combination_type=method, **how)
    layouts = io.load_peft(folders).layouts
    updates = io.load_peft([tmp_path / "out"]).stacks
    for module, delta in deltas(model).items():
        ours = np.asarray(updates[module].b[0] @ updates[module].a[0])
        ours = in_weight_shape(layouts[module], ours, delta.shape)
        np.testing.assert_allclose(delta, ours, rtol=1e-4, atol=2e-5)
