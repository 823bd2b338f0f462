"""Names of modules of image models in diffusers and in kohya's files, both ways."""

import image_samples as image
import io_samples as samples
import numpy as np
import pytest
from image_samples import CONV, KOHYA, TEXT, TO_K, TO_Q

import jaxmerge as jm
from jaxmerge import io
from jaxmerge.io.image import clip_names, flux_names, unet_names
from jaxmerge.io.image.file_kinds import KINDS
from jaxmerge.io.image.naming import diffusers_modules

KNOWN = {  # names of files in the field
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": "unet."
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj": "unet."
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0": "unet."
    "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0",
    "lora_unet_down_blocks_0_resnets_0_time_emb_proj": "unet."
    "down_blocks.0.resnets.0.time_emb_proj",
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k": "unet."
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_out_0": "unet."
    "down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_out.0",
    "lora_unet_input_blocks_3_0_op": "unet.down_blocks.0.downsamplers.0.conv",
    "lora_unet_input_blocks_7_0_skip_connection": "unet."
    "down_blocks.2.resnets.0.conv_shortcut",
    "lora_unet_middle_block_1_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_unet_middle_block_2_out_layers_3": "unet.mid_block.resnets.1.conv2",
    "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_v": "unet."
    "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v",
    "lora_unet_output_blocks_5_2_conv": "unet.up_blocks.1.upsamplers.0.conv",
    "lora_unet_output_blocks_8_0_in_layers_2": "unet.up_blocks.2.resnets.2.conv1",
    "lora_unet_label_emb_0_2": "unet.add_embedding.linear_2",
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": "text_encoder."
    "text_model.encoder.layers.0.self_attn.q_proj",
    "lora_te2_text_model_encoder_layers_31_mlp_fc2": "text_encoder_2."
    "text_model.encoder.layers.31.mlp.fc2",
    "lora_transformer_single_transformer_blocks_37_proj_mlp": "transformer."
    "single_transformer_blocks.37.proj_mlp",
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_names(name):
    component, fused = diffusers_modules(name) or ("", None)
    assert fused is not None
    assert [f"{component}.{module}" for module in fused.modules] == [KNOWN[name]]


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_0_attentions_2_proj_in",  # there are two
        "lora_unet_input_blocks_2_2_proj_in",
        "lora_unet_down_blocks_4_attentions_0_proj_in",
        "lora_unet_double_blocks_19_img_mlp_0",
        "lora_te_text_model_encoder_layers_0_self_attn_qproj",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
        "lora_prior_down_blocks_0",
    ],
)
def test_a_name_that_no_model_has_is_not_guessed(name):
    assert diffusers_modules(name) is None


def test_no_two_modules_share_a_name():
    for family in unet_names.UNETS:
        names = unet_names.original_names(family)
        flat = {module.replace(".", "_") for module in names}
        original = {name.replace(".", "_") for name in names.values()}
        assert len(flat) == len(original) == len(names)
    modules = [m for f in flux_names.from_kohya().values() for m in f.modules]
    assert len(set(modules)) == len(modules) == len(flux_names.flat())
    assert len(set(clip_names.from_kohya().values())) == len(clip_names.from_kohya())


def converted(path, out, kind, **options):
    jm.convert([path], to=kind, out=out, **options)
    return out if kind == "peft" else out / KINDS[kind].file


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for module, update in wanted.items():
        samples.close(found[module], update)


def test_stable_diffusion_goes_to_kohya_and_back(tmp_path):
    found = image.pairs()
    plain = {module: image.update(*pair) for module, pair in found.items()}
    path = image.write_diffusers(tmp_path / "a.safetensors", found)
    kohya = converted(path, tmp_path / "k", "kohya")
    written = image.read_updates(kohya)
    same(written, {KOHYA[module]: update for module, update in plain.items()})
    alphas = {
        float(value)
        for key, value in image.safetensors.numpy.load_file(kohya).items()
        if key.endswith(".alpha")
    }
    assert alphas == {4.0}  # one rank, which all loaders scale alike
    same(image.read_updates(converted(kohya, tmp_path / "d", "diffusers")), plain)
    ragged = converted(path, tmp_path / "r", "kohya", ragged=True)
    same(image.read_updates(ragged), written)


def test_stable_diffusion_xl_goes_to_the_original_names(tmp_path):
    names = [name for name in KNOWN if "input_blocks" in name or "_te2_" in name]
    found = {KNOWN[name]: image.factors(n=5, seed=k) for k, name in enumerate(names)}
    path = image.write_diffusers(tmp_path / "a.safetensors", found)
    kohya = image.read_updates(converted(path, tmp_path / "k", "kohya"))
    same(kohya, {name: image.update(*found[KNOWN[name]]) for name in names})


def test_files_that_do_not_tell_their_model_are_kept(tmp_path):
    path = tmp_path / "a.safetensors"
    for module in (TO_Q, TEXT):
        image.write_diffusers(path, {module: image.factors(n=5)})
        with pytest.raises(
            io.AdapterError, match="of Stable Diffusion 1 or 2 or of XL"
        ):
            jm.convert([path], to="kohya", out=tmp_path / "k")
    for n, name in ((768, "down_blocks_1"), (2048, "input_blocks_4_1")):
        image.write_diffusers(path, {TO_K: image.factors(n=n)})
        kohya = converted(path, tmp_path / str(n), "kohya")
        assert all(name in module for module in image.read_updates(kohya))
    image.write_diffusers(path, {"unet.mid_block.other": image.factors()})
    with pytest.raises(io.AdapterError, match="whose names are known"):
        jm.convert([path], to="kohya", out=tmp_path / "k")


H = 6  # hidden size of a small FLUX
DOUBLE, SINGLE = (
    "lora_unet_double_blocks_3_img_attn_qkv",
    "lora_unet_single_blocks_7_linear1",
)
PARTS = ("attn.to_q", "attn.to_k", "attn.to_v")


def test_fused_layers_of_flux_are_split_and_joined(tmp_path):
    found = {
        DOUBLE: image.factors(m=3 * H, n=H, seed=1),
        SINGLE: image.factors(m=7 * H, n=H, seed=3),
        "lora_unet_single_blocks_7_linear2": image.factors(m=H, n=5 * H, seed=5),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": image.factors(n=5, seed=7),
    }
    path = image.write_kohya(tmp_path / "a.safetensors", found, {DOUBLE: 6.0})
    split = converted(path, tmp_path / "d", "diffusers")
    parts = image.read_updates(split)
    qkv = image.update(*found[DOUBLE], 2.0)
    for place, part in enumerate(PARTS):
        rows = qkv[place * H : (place + 1) * H]
        samples.close(parts[f"transformer.transformer_blocks.3.{part}"], rows)
    mlp = parts["transformer.single_transformer_blocks.7.proj_mlp"]
    samples.close(mlp, image.update(*found[SINGLE])[3 * H :])
    joined = converted(split, tmp_path / "k", "kohya")
    whole = {name: image.update(*pair) for name, pair in found.items()} | {DOUBLE: qkv}
    same(image.read_updates(joined), whole)
    down = f"{DOUBLE}.lora_down.weight"
    assert len(image.safetensors.numpy.load_file(joined)[down]) == 3  # A is shared


def test_parts_of_flux_with_their_own_factors_are_joined(tmp_path):
    start = "transformer.single_transformer_blocks.7."
    found = {
        f"{start}attn.to_q": image.factors(m=H, n=H, r=2, seed=1),
        f"{start}proj_mlp": image.factors(m=4 * H, n=H, r=1, seed=3),
    }
    path = image.write_diffusers(tmp_path / "a.safetensors", found)
    (update,) = image.read_updates(converted(path, tmp_path / "k", "kohya")).values()
    zero = np.zeros((2 * H, H))
    rows = [image.update(*pair) for pair in found.values()]
    samples.close(update, np.concatenate([rows[0], zero, rows[1]]))
    found[f"{start}attn.to_v"] = image.factors(m=H + 1, n=H)
    image.write_diffusers(path, found)
    with pytest.raises(io.AdapterError, match="not of FLUX"):
        jm.convert([path], to="kohya", out=tmp_path / "x")


def test_a_component_becomes_a_peft_folder_and_one_again(tmp_path):
    found = image.pairs()
    path = image.write_kohya(tmp_path / "a.safetensors", found)
    with pytest.raises(jm.Refusal, match="component='text_encoder'"):
        jm.convert([path], to="peft", out=tmp_path / "p")
    folder = converted(path, tmp_path / "p", "peft", component="unet")
    assert (folder / "adapter_config.json").is_file()
    unet = {module: pair for module, pair in found.items() if module != TEXT}
    adapters = io.load_peft([folder])
    for module, pair in unet.items():
        stack = adapters.stacks[module.removeprefix("unet.")]
        samples.close(samples.update(stack), image.update(*pair))
    with pytest.raises(jm.Refusal, match="component"):
        jm.convert([folder], to="diffusers", out=tmp_path / "d")
    for kind, names in (("diffusers", str), ("kohya", KOHYA.get)):
        back = converted(folder, tmp_path / kind, kind, component="unet")
        wanted = {names(module): image.update(*pair) for module, pair in unet.items()}
        same(image.read_updates(back), wanted)


def twice(record):
    (entry,) = record["inputs"]
    record["inputs"].append({**entry, "name": "other"})


def test_a_conversion_under_other_names_is_computed_again(tmp_path):
    found = image.pairs()
    path = image.write_kohya(tmp_path / "a.safetensors", found)
    converted(path, tmp_path / "p", "peft", component="unet")
    converted(tmp_path / "p", tmp_path / "d", "diffusers", component="unet")
    for folder, kind in (("p", "peft"), ("d", "diffusers")):
        assert not jm.verify(tmp_path / folder).differences
        assert jm.verify(tmp_path / folder).record["recipe"]["converted"] == kind
        card = (tmp_path / folder / "README.md").read_text()
        assert "# LoRA adapter under other names" in card
        assert "needs to compute this folder again" in card
    with pytest.raises(jm.Refusal, match="a conversion, not a merge"):
        jm.recipe_of(tmp_path / "p")
    image.write_kohya(path, image.pairs(seed=1))
    assert jm.verify(tmp_path / "p").serious
    samples.edit(tmp_path / "d" / "jaxmerge.json", twice)
    with pytest.raises(io.AdapterError, match="is of one adapter"):
        jm.verify(tmp_path / "d")


def test_a_checkpoint_holds_peft_adapters(tmp_path):
    found = {CONV: image.pairs()[CONV]}
    path = image.write_kohya(tmp_path / "a.safetensors", found)
    with pytest.raises(io.AdapterError, match=r"checkpoints hold PEFT .*to='peft'"):
        jm.convert([path], out=tmp_path / "orbax")
    folder = converted(path, tmp_path / "p", "peft")
    jm.convert([folder], out=tmp_path / "orbax")
    back = converted(tmp_path / "orbax", tmp_path / "d", "diffusers", component="unet")
    same(image.read_updates(back), {CONV: image.update(*found[CONV])})
