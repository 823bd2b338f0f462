"""LoRA files of image models: read, merged and written in their kind, or refused."""

import json

import image_samples as image
import io_samples as samples
import numpy as np
import pytest
from image_samples import CONV, KOHYA, TEXT, TO_K, TO_Q

import jaxmerge as jm
from jaxmerge import io
from jaxmerge.io.image.file_kinds import KINDS

ALPHAS = {TO_Q: 1.5, TO_K: 6.0, CONV: 2.0}  # TEXT has none: its rank


def scale_of(module, pair):
    rank = pair[1].shape[0]
    return ALPHAS.get(module, rank) / rank


def expected(found, names=lambda name: name):
    return {
        names(module): image.update(*pair, scale_of(module, pair))
        for module, pair in found.items()
    }


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for module, update in wanted.items():
        samples.close(found[module], update)


def loaded(path, **read):
    adapters = samples.load_one(path, **read)
    return {m: samples.update(s) for m, s in adapters.stacks.items()}


def test_kohya_is_read_with_its_alphas_and_names(tmp_path):
    path = image.write_kohya(tmp_path / "a.safetensors", image.pairs(), ALPHAS)
    same(loaded(path), expected(image.pairs(), KOHYA.get))
    same(loaded(tmp_path), expected(image.pairs(), KOHYA.get))
    (planned,) = io.plan_peft([path]).adapters
    assert (planned.name, planned.kind, planned.ranks) == ("a", "kohya", (3, 4))
    notes = samples.load_one(path).notes
    assert any("1 of 4 modules have no alpha" in n and "sd-scripts" in n for n in notes)
    asked = loaded(path, assume_alpha=6.0)[KOHYA[TEXT]]
    samples.close(asked, image.update(*image.pairs()[TEXT], 2.0))


@pytest.mark.parametrize("form", image.FORMS)
def test_diffusers_is_read_in_each_of_its_forms(tmp_path, form):
    path = tmp_path / "pytorch_lora_weights.safetensors"
    image.write_diffusers(path, image.pairs(), form, alphas=ALPHAS)
    same(loaded(path), expected(image.pairs()))


def test_the_configs_of_a_header_give_the_scales(tmp_path):
    found = image.pairs()
    configs = {
        "unet.r": 3,
        "unet.lora_alpha": 6,
        "unet.alpha_pattern": {"attn2.to_k": 12},
        "unet.rank_pattern": {"conv1": 4},
        "unet.use_rslora": True,
        "text_encoder.r": 3,
        "text_encoder.lora_alpha": 9,
    }
    path = image.write_diffusers(tmp_path / "a.safetensors", found, configs=configs)
    root = np.sqrt(3)
    scales = {TO_Q: 6 / root, TO_K: 12 / root, CONV: 6 / np.sqrt(4), TEXT: 3.0}
    same(loaded(path), {m: image.update(*found[m], s) for m, s in scales.items()})
    del configs["text_encoder.r"], configs["text_encoder.lora_alpha"]
    image.write_diffusers(path, found, configs=configs)
    with pytest.raises(io.AdapterError, match="says nothing of 'text_encoder'"):
        samples.load_one(path)
    image.write_diffusers(path, found, configs=configs, alphas=ALPHAS)
    with pytest.raises(io.AdapterError, match="both in its header"):
        samples.load_one(path)


def test_old_processors_and_flat_text_encoders_get_their_names(tmp_path):
    b, a = image.factors(n=5)
    parent = TO_Q.removesuffix(".to_q")
    tensors = {}
    for part, value in (("down", a), ("up", b)):
        tensors[f"{parent}.processor.to_out_lora.{part}.weight"] = value
        tensors[f"{parent[5:]}.processor.to_q_lora.{part}.weight"] = value
        tensors[f"text_encoder.encoder.layers.0.mlp.fc1.lora.{part}.weight"] = value
        layer = f"text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.{part}"
        tensors[f"{layer}.weight"] = value
    image.save(tmp_path / "a.safetensors", tensors)
    text = "text_encoder.text_model.encoder.layers.0"
    names = {f"{parent}.to_out.0", TO_Q, f"{text}.mlp.fc1", TEXT}
    same(loaded(tmp_path), dict.fromkeys(names, image.update(b, a)))


def test_a_convolution_in_three_factors_is_one_of_two(tmp_path):
    up, down = image.factors(n=4, kernel=(1, 1), seed=1)
    mid = samples.random(3, 3, 3, 3, seed=5)
    name = KOHYA[CONV]
    tensors = {f"{name}.lora_{k}.weight": v for k, v in (("up", up), ("down", down))}
    path = tmp_path / "a.safetensors"
    image.save(path, tensors | {f"{name}.lora_mid.weight": mid})
    kernel = np.zeros((6, 4, 3, 3))
    for p in range(3):  # the same sum, factor by factor
        for q in range(3):
            outer = np.multiply.outer(up[:, p, 0, 0], down[q, :, 0, 0])
            kernel += np.multiply.outer(outer, mid[p, q])
    same(loaded(path), {name: kernel.reshape(6, -1)})
    jm.merge([path], "concat", out=tmp_path / "out")
    same(loaded(tmp_path / "out"), {name: kernel.reshape(6, -1)})
    image.save(path, tensors | {f"{name}.lora_mid.weight": mid[:2]})
    with pytest.raises(io.AdapterError, match="three factors"):
        samples.load_one(path)


WRITERS = {"kohya": image.write_kohya, "diffusers": image.write_diffusers}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_merge_is_written_in_the_kind_of_its_inputs(tmp_path, kind, ragged):
    ranks, weights = (3, 2), [0.7, -0.4]
    paths = [
        WRITERS[kind](tmp_path / f"{r}.safetensors", image.pairs(r, r), alphas=ALPHAS)
        for r in ranks
    ]
    out = tmp_path / "out"
    options = {"weights": weights, "out": out, "ragged": ragged}
    if ragged and kind == "diffusers":
        with pytest.raises(io.AdapterError, match="one rank for all modules"):
            jm.merge(paths, "concat", **options)
        return
    saved = jm.merge(paths, "concat", **options).saved
    assert saved.files.keys() == {KINDS[kind].file, "jaxmerge.json", "README.md"}
    assert saved.max_lora_rank is None
    names = KOHYA.get if kind == "kohya" else str
    one, two = (expected(image.pairs(r, r), names) for r in ranks)
    total = {name: weights[0] * one[name] + weights[1] * two[name] for name in one}
    same(image.read_updates(out / KINDS[kind].file), total)
    assert jm.verify(out).to_json()["identical"]
    jm.merge(paths, "concat", weights=weights, out=out, force=True)


def test_kinds_that_have_one_naming_are_merged(tmp_path):
    kohya = image.write_kohya(tmp_path / "k.safetensors", image.pairs(), ALPHAS)
    other = image.write_diffusers(tmp_path / "d.safetensors", image.pairs(9))
    block = {"lora_unet_new_block": image.factors()}
    unknown = image.write_kohya(tmp_path / "u.safetensors", block)
    with pytest.raises(io.AdapterError, match="names of diffusers are not certain"):
        io.plan_peft([unknown, other])
    report = jm.merge([kohya, other], "concat", out=tmp_path / "out")
    assert any("brought to those of diffusers" in note for note in report.notes)
    plain = {m: image.update(*pair) for m, pair in image.pairs(9).items()}
    first = expected(image.pairs())
    found = image.read_updates(tmp_path / "out" / KINDS["diffusers"].file)
    same(found, {m: plain[m] + first[m] for m in first})
    assert jm.verify(tmp_path / "out").ok
    with pytest.raises(io.AdapterError, match=r"a PEFT folder .* convert one of them"):
        io.plan_peft([samples.write(tmp_path / "p"), other])


def test_one_module_under_two_names_of_kohya_is_refused(tmp_path):
    names = ("lora_unet_input_blocks_4_1_proj_in", KOHYA[TO_Q])
    other = "lora_unet_down_blocks_1_attentions_0_proj_in"
    paths = [
        image.write_kohya(tmp_path / f"{name}.safetensors", {name: image.factors()})
        for name in (*names, other)
    ]
    assert io.plan_peft(paths[:2]).conflicts == ()
    with pytest.raises(io.AdapterError, match="name one module in two ways"):
        io.plan_peft(paths)
    jm.convert(paths[:1], to="diffusers", out=tmp_path / "d")
    assert len(io.plan_peft([tmp_path / "d", paths[2]]).modules) == 1


def numbered(path, seed=0, classes=("B", "A")):
    tensors, header = {"<s1>": samples.random(4, seed=seed)}, {"<s1>": "<embed>"}
    header["unet"] = json.dumps(classes)
    for number in range(3):
        b, a = image.factors(n=5, seed=seed + 2 * number)
        tensors |= {f"unet:{number}:up": b, f"unet:{number}:down": a}
        header[f"unet:{number}:rank"] = "3"
    return image.save(path, tensors, header)


def test_numbered_modules_are_merged_among_themselves(tmp_path):
    paths = [numbered(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 10)]
    with pytest.raises(io.AdapterError, match="saved modules besides LoRA"):
        io.load_peft(paths)
    out = tmp_path / "out"
    saved = jm.merge(paths, "concat", out=out, heads="mean").saved
    found = {**loaded(paths[0], heads="keep")}
    for module, update in loaded(paths[1], heads="keep").items():
        found[module] = found[module] + update
    same(image.read_updates(out / "numbered_lora.safetensors"), found)
    written = io.load_peft([out], heads="keep")
    token = (samples.random(4, seed=0) + samples.random(4, seed=10)) / 2
    samples.close(written.heads[0]["<s1>"], token)
    assert (saved.rank, jm.verify(out).ok) == (6, True)
    other = numbered(tmp_path / "other.safetensors", classes=["A"])
    with pytest.raises(io.AdapterError, match="one number means two modules"):
        io.plan_peft([paths[0], other])
    with pytest.raises(jm.Refusal, match="names are unknown"):
        jm.convert(paths[:1], to="kohya", out=tmp_path / "k")


REFUSED = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "on_input": r"\(IA\)3",
    "dora_scale": "DoRA",
    "oft_blocks": "OFT",
    "diff": "full difference",
    "unknown.weight": "not understood",
}


@pytest.mark.parametrize("leaf", REFUSED)
@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path, leaf, kind):
    path = WRITERS[kind](tmp_path / "a.safetensors", image.pairs())
    tensors = image.safetensors.numpy.load_file(path)
    name = KOHYA[TO_Q] if kind == "kohya" else TO_Q
    image.save(path, tensors | {f"{name}.{leaf}": samples.random(2, 2)})
    with pytest.raises(io.AdapterError, match=REFUSED[leaf]) as refused:
        io.plan_peft([path])
    assert f"{path}: tensor '{name}.{leaf}'" in str(refused.value)


@pytest.mark.parametrize("alpha", [np.zeros(1), np.full(1, np.inf), np.ones(2)])
def test_an_alpha_is_one_finite_number(tmp_path, alpha):
    found = {TO_Q: image.factors(n=5)}
    path = image.write_kohya(tmp_path / "a.safetensors", found, {TO_Q: alpha})
    with pytest.raises(io.AdapterError, match="alpha") as refused:
        io.plan_peft([path])
    assert f"{KOHYA[TO_Q]}.alpha" in str(refused.value)


def test_damaged_files_are_refused(tmp_path):
    path = image.write_kohya(tmp_path / "a.safetensors", image.pairs())
    tensors = image.safetensors.numpy.load_file(path)
    for key in (f"{KOHYA[TO_Q]}.lora_up.weight", f"{KOHYA[CONV]}.lora_down.weight"):
        image.save(path, {k: v for k, v in tensors.items() if k != key})
        with pytest.raises(io.AdapterError, match="incomplete"):
            samples.load_one(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(io.AdapterError, match="not a complete weight file"):
        samples.load_one(path)


@pytest.mark.parametrize("name", ["14-diffusers-unet", "16-kohya"])
def test_files_of_the_field_are_merged(shared, tmp_path, name):
    folder = shared / "faults" / name
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    jm.merge([folder / "a", folder / "b"], "concat", out=tmp_path / "out")
    one, two, out = (
        loaded(place) for place in (folder / "a", folder / "b", tmp_path / "out")
    )
    same(out, {module: one[module] + two[module] for module in one})
