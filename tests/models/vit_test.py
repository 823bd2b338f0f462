"""The vision tower against transformers, stage by stage, and its files."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_torch import (
    kernels,
    linear_layers,
    randomise,
    save_torch,
)
from safetensors.numpy import save_file

from jaxmerge.models import (
    VisionConfig,
    VisionTower,
    init_vision,
    load_vision,
    save_vision,
    vision_apply,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = [
    {"hidden_size": 16, "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
    {"hidden_size": 24, "num_attention_heads": 3, "image_size": 6, "patch_size": 2}
    | {"hidden_act": "gelu", "num_channels": 1, "layer_norm_eps": 1e-3},
    {"hidden_size": 8, "num_attention_heads": 1, "image_size": 7, "patch_size": 7}
    | {"num_hidden_layers": 3, "intermediate_size": 5},
]


def torch_config(sizes):
    defaults = {"num_hidden_layers": 2, "intermediate_size": 20, "projection_dim": 6}
    return transformers.CLIPVisionConfig(**(defaults | sizes))


def images_for(config, batch=3):
    shape = (batch, config.image_size, config.image_size, config.num_channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(len(SIZES)))
def test_every_stage_equals_transformers(seed, tmp_path, capfd):
    reference = transformers.CLIPVisionModelWithProjection(torch_config(SIZES[seed]))
    save_torch(randomise(reference, seed), tmp_path, capfd)
    config, params = load_vision(tmp_path)
    images = images_for(config)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = reference(pixels, output_hidden_states=True)
        embedded = reference.vision_model.embeddings(pixels)
        pooled = reference.vision_model(pixels).pooler_output
    run = partial(VisionTower(config).apply, capture_intermediates=True)
    output, state = jax.jit(run)({"params": params}, images)
    inner = state["intermediates"]["vision_model"]
    blocks = inner["encoder"]["layers"]
    stages = [
        (inner["embeddings"]["__call__"][0], embedded),
        (inner["pre_layrnorm"]["__call__"][0], expected.hidden_states[0]),
        *(
            (blocks[str(i)]["__call__"][0], expected.hidden_states[i + 1])
            for i in range(config.num_hidden_layers)
        ),
        (inner["__call__"][0], pooled),
        (output, expected.image_embeds),
    ]
    for ours, theirs in stages:
        scale = float(theirs.abs().max())
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5 * scale, rtol=0)
    assert output.dtype == jnp.float32


def test_linear_layers_carry_the_names_that_peft_gives(tmp_path, capfd):
    reference = transformers.CLIPVisionModelWithProjection(torch_config(SIZES[0]))
    save_torch(reference, tmp_path, capfd)
    _, params = load_vision(tmp_path)
    named, ours = linear_layers(reference), kernels(params)
    assert named == ours - {"vision_model.embeddings.patch_embedding"}
    assert "vision_model.encoder.layers.1.self_attn.q_proj" in ours


def test_towers_inside_other_checkpoints(tmp_path, capfd):
    """Bare CLIPVisionModel keys, and the vision half of a whole CLIPModel."""
    vision = torch_config(SIZES[0])
    bare = randomise(transformers.CLIPVisionModel(vision), 0)
    save_torch(bare, tmp_path / "bare", capfd)
    config, params = load_vision(tmp_path / "bare")
    images = images_for(config)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = bare(pixels).pooler_output.numpy()
    assert config.projection_dim is None
    np.testing.assert_allclose(
        vision_apply(config)(params, images), expected, rtol=1e-4, atol=1e-5
    )

    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 10}
    both = transformers.CLIPConfig(
        text_config=text, vision_config=vision.to_dict(), projection_dim=4
    )
    whole = randomise(transformers.CLIPModel(both), 1)
    save_torch(whole, tmp_path / "whole", capfd)
    config, params = load_vision(tmp_path / "whole")
    with torch.no_grad():
        expected = whole.get_image_features(pixels).pooler_output.numpy()
    assert config.projection_dim == 4
    np.testing.assert_allclose(
        vision_apply(config)(params, images), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("projection", [None, 5])
def test_written_folder_is_read_by_transformers(projection, tmp_path):
    config = VisionConfig(
        **(SIZES[1] | {"num_hidden_layers": 2, "intermediate_size": 12}),
        projection_dim=projection,
    )
    params = init_vision(config, jax.random.key(3))
    save_vision(tmp_path, config, params)
    again, loaded = load_vision(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    images = images_for(config)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    kind = "CLIPVisionModelWithProjection" if projection else "CLIPVisionModel"
    reference = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        output = reference(pixels)
    expected = output.image_embeds if projection else output.pooler_output
    np.testing.assert_allclose(
        vision_apply(config)(params, images), expected.numpy(), rtol=1e-4, atol=1e-5
    )


def test_bf16_weights_and_files_in_several_parts(tmp_path, capfd):
    config = torch_config(SIZES[0])
    reference = randomise(transformers.CLIPVisionModelWithProjection(config), 0)
    reference.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="5KB")
    capfd.readouterr()
    assert not (tmp_path / "model.safetensors").exists()
    _, params = load_vision(tmp_path)
    kernel = params["visual_projection"]["kernel"]
    expected = reference.visual_projection.weight.detach().float().numpy().T
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, expected)
    _, params = load_vision(tmp_path, dtype=jnp.bfloat16)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}


def tiny_folder(folder):
    config = VisionConfig(
        **(SIZES[0] | {"num_hidden_layers": 1, "intermediate_size": 4})
    )
    save_vision(folder, config, init_vision(config, jax.random.key(0)))
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_config(f, num_hidden_layers=2), r"missing .*layers\.1"),
        (lambda f: change_config(f, hidden_act="swish"), "swish.*not one of quick"),
        (lambda f: change_config(f, model_type="bert"), "'bert' is not clip"),
        (lambda f: change_config(f, patch_size=3), "not a multiple"),
        (lambda f: change_config(f, intermediate_size=8), "fc1.*model has"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "neither"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12"), "not a readable"),
        (
            lambda f: save_file(
                {"visual_projection.weight": np.zeros((2, 2))}, f / "model.safetensors"
            ),
            "missing",
        ),
    ],
)
def test_unreadable_folders_are_refused_by_name(damage, message, tmp_path):
    damage(tiny_folder(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        load_vision(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_index_may_not_point_outside_the_folder(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"visual_projection.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside the folder"):
        load_vision(folder)


def test_wrong_image_sizes_are_refused():
    config = VisionConfig(
        **(SIZES[0] | {"num_hidden_layers": 1, "intermediate_size": 4})
    )
    params = init_vision(config, jax.random.key(0))
    with pytest.raises(ValueError, match="expected"):
        vision_apply(config)(params, jnp.ones((1, 8, 4, 3), jnp.float32))
