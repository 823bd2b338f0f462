"""One module under two names: found wherever the names differ, mended or refused."""

import time

import io_samples as samples
import numpy as np
import pytest

from jaxmerge import io
from jaxmerge.io.aliases import aliases
from jaxmerge.io.fused import fused_beside_parts
from jaxmerge.refusals import Option

LAYERS = "layers.0.self_attn.q_proj layers.1.self_attn.q_proj layers.0.mlp.up_proj"
SAME = {  # names of the one, names of the other: one module under two names
    "prefix": ("h.0.fc h.1.fc", "vision.h.0.fc vision.h.1.fc"),
    "prefix of one": ("fc", "encoder.fc"),
    "inserted": ("model.layers.0.q_proj", "model.language_model.layers.0.q_proj"),
    "inserted twice": ("m.layers.0.q_proj", "m.m.layers.0.q_proj"),
    "in front, numbered": ("encoder.layer.0.key", "0.auto_model.encoder.layer.0.key"),
    "inside a layer": ("h.0.attn.q_proj h.1.attn.q_proj", "h.0.attn.attention.q_proj"),
    "behind": ("h.0.q_proj", "h.0.q_proj.linear"),
    "renamed": ("bert.encoder.layer.0.query", "roberta.encoder.layer.0.query"),
    "renamed inside": ("h.0.attention.q_proj", "h.0.self_attn.q_proj"),
    "moved": ("language_model.model.layers.0.k", "model.language_model.layers.0.k"),
    "some agree": (f"model.{LAYERS} lm_head", "model.lm.layers.0.mlp.up_proj lm_head"),
    "one layer agrees": ("m.h.0.q m.h.1.q", "m.h.0.q m.lm.h.1.q"),
    "other layers": ("model.h.0.q model.h.1.q", "model.lm.h.2.q model.lm.h.3.q"),
    "same tower": ("visual.blocks.0.q", "vision_tower.blocks.0.q"),
}  # fmt: skip
APART = {  # different modules of one model
    "other layers": ("model.h.0.q model.h.1.q", "model.h.2.q model.h.3.q"),
    "other ends": ("h.0.self_attn.q_proj", "h.0.self_attn.v_proj"),
    "plain ends": ("h.0.self_attn.q_proj.linear", "h.0.self_attn.v_proj.linear"),
    "heads": ("pooler.dense", "classifier.dense"),
    "a head and layers": ("pooler.dense", "layer.0.output.dense layer.1.output.dense"),
    "towers": ("vision_model.layers.0.q", "text_model.layers.0.q"),
    "coders": ("model.encoder.layers.0.q_proj", "model.decoder.layers.0.q_proj"),
    "attentions": ("h.0.self_attn.q_proj", "h.0.cross_attn.q_proj"),
    "attn and cross": ("h.0.attn.q_proj", "h.0.crossattention.q_proj"),
    "numbered": ("h.0.attn1.to_q", "h.0.attn2.to_q"),
    "two text encoders": ("text_encoder.h.0.q_proj", "text_encoder_2.h.0.q_proj"),
    "blocks": ("dit_blocks.0.attn.to_q", "single_dit_blocks.0.attn.to_q"),
    "both ways": ("h.0.attn_token_to_image.q_proj", "h.0.attn_image_to_token.q_proj"),
    "before and after": ("pre_tile.h.0.q_proj", "post_tile.h.0.q_proj"),
    "global": ("transformer.h.0.q_proj", "global_transformer.h.0.q_proj"),
    "unet": ("down_blocks.0.attn.to_q", "up_blocks.0.attn.to_q"),
    "experts": ("h.0.mlp.experts.0.up_proj", "h.0.mlp.experts.1.up_proj"),
    "shared expert": ("h.0.mlp.experts.0.up_proj", "h.0.mlp.shared_expert.up_proj"),
    "first layers are dense": ("h.0.mlp.up_proj", "h.3.mlp.shared.up_proj"),
    "both in one": (f"model.{LAYERS}", f"model.{LAYERS} model.lm.layers.0.mlp.up_proj"),
    "both in one, inside": (
        "h.0.attn.q_proj h.0.mix.q_proj", "h.0.mix.q_proj h.1.mix.q_proj"
    ),
}  # fmt: skip


def shapes(names):
    return dict.fromkeys(names.split(), (8, 6))


@pytest.mark.parametrize("case", SAME)
def test_one_module_under_two_names(case):
    mine, theirs = map(shapes, SAME[case])
    (found,) = aliases([mine, theirs])
    assert found.names[0] in mine.keys() - theirs.keys()
    assert found.names[1] in theirs.keys() - mine.keys()
    (turned,) = aliases([theirs, mine])
    assert turned.names[::-1] == found.names


@pytest.mark.parametrize("case", APART)
def test_different_modules_of_one_model(case):
    mine, theirs = map(shapes, APART[case])
    assert aliases([mine, theirs]) == []
    assert aliases([theirs, mine]) == []


@pytest.mark.parametrize("case", SAME)
def test_other_shapes_are_other_modules(case):
    mine, theirs = map(shapes, SAME[case])
    wide = dict.fromkeys(theirs.keys() - mine.keys(), (8, 7))
    assert aliases([mine, theirs | wide]) == []


def test_many_kinds_of_names_cost_little_or_are_refused():
    start = time.perf_counter()
    many = [
        {f"{a}.{'x' * k}{'y' * (k % 7)}.up": (1, 1) for k in range(140)} for a in "ab"
    ]
    aliases(many)
    layers = [{f"{a}.h.{k}.q_proj": (1, 1) for k in range(20000)} for a in "ab"]
    assert len(aliases(layers)[0].pairs) == 20000
    assert time.perf_counter() - start < 10
    with pytest.raises(io.AdapterError, match="different base models"):
        aliases([{f"{a}.{'x' * k}.up": (1, 1) for k in range(999)} for a in "ab"])


def written(folder, modules, seed=0, **config):
    tensors = {}
    for place, module in enumerate(modules.split()):
        tensors |= samples.linear(module, seed=seed + 10 * place)
    return samples.write(folder, tensors, **config)


def refused(folders, **options):
    with pytest.raises(io.AdapterError) as refusal:
        io.load_peft(folders, **options)
    (conflict,) = io.plan_peft(folders, **options).conflicts
    assert (conflict.kind, conflict.message) == ("names", refusal.value.message[:-1])
    return [part for part in conflict.message if isinstance(part, Option)]


def option(name, value):
    return Option(name, value, quoted=True)


SIMILAR = Option("allow_similar_names", "True")
TEXT = "model.layers.0.q_proj model.layers.1.q_proj lm_head"
SEES = TEXT.replace("model.l", "model.language_model.l")


def test_an_inserted_piece_is_mended_by_two_prefixes(tmp_path):
    text = written(tmp_path / "text", TEXT)
    sees = written(tmp_path / "sees", f"{SEES} model.visual.up", seed=5)
    options = refused([sees, text])
    assert options == [
        option("strip_prefix", "model.language_model."),
        option("add_prefix", "model."),
        SIMILAR,
    ]
    mended = io.load_peft([sees, text], **{o.name: o.value for o in options[:2]})
    assert {m: s.ranks for m, s in mended.stacks.items()} == {
        "lm_head": (4, 4),
        "model.layers.0.q_proj": (4, 4),
        "model.layers.1.q_proj": (4, 4),
        "model.visual.up": (4, 0),
    }
    alone = samples.load_one(sees).stacks["model.language_model.layers.1.q_proj"]
    np.testing.assert_array_equal(
        mended.stacks["model.layers.1.q_proj"].b[0], alone.b[0]
    )
    assert len(io.load_peft([sees, text], allow_similar_names=True).stacks) == 6


def test_either_form_can_be_kept_where_nothing_stands_in_the_way(tmp_path):
    folders = [written(tmp_path / n, m) for n, m in (("text", TEXT), ("sees", SEES))]
    options = refused(folders)
    assert options[2:] == [
        option("strip_prefix", "model."),
        option("add_prefix", "model.language_model."),
        SIMILAR,
    ]
    found = io.load_peft(folders, **{o.name: o.value for o in options[2:4]})
    assert sorted(found.stacks) == sorted(SEES.split())
    assert all(stack.ranks == (4, 4) for stack in found.stacks.values())


def test_no_prefix_is_named_that_would_not_mend(tmp_path):
    inside = ("h.0.attn.q_proj h.1.attn.q_proj", "h.0.attn.x.q_proj h.1.attn.x.q_proj")
    twice = (
        "language_model.model.h.0.q language_model.lm_head",
        "model.lm.h.0.q lm_head",
    )
    for place, pair in enumerate((inside, twice)):
        folders = [
            written(tmp_path / f"{place}{side}", names)
            for side, names in enumerate(pair)
        ]
        assert refused(folders) == [SIMILAR]
    folders = [written(tmp_path / n, f"{n}.h.0.q_proj") for n in ("abc", "bcd", "cde")]
    with pytest.raises(io.AdapterError, match=r"no prefix mends.*2 more conflicts"):
        io.load_peft(folders)
    one = {"strip_prefix": "abc.", "add_prefix": "bcd."}
    with pytest.raises(io.AdapterError, match="no prefix mends"):
        io.load_peft(folders, **one)


def test_saved_modules_are_renamed_too(tmp_path):
    tensors = samples.linear("model.lm.h.0.fc")
    tensors["base_model.model.model.lm.score.weight"] = samples.random(3, 5)
    one = samples.write(tmp_path / "one", tensors)
    two = written(tmp_path / "two", "model.h.0.fc")
    found = io.load_peft(
        [one, two], strip_prefix="model.lm.", add_prefix="model.", heads="keep"
    )
    assert list(found.heads[0]) == ["model.score.weight"]
    assert found.stacks["model.h.0.fc"].ranks == (4, 4)


FUSED = {
    "attention": ("h.0.attn.qkv_proj", "h.0.attn.q_proj h.0.attn.v_proj"),
    "one part": ("h.0.attn.query_key_value", "h.0.attn.key"),
    "gpt": ("h.0.attn.c_attn", "h.0.attn.v_proj"),
    "mpt": ("h.0.attn.Wqkv", "h.0.attn.Wq"),
    "baichuan": ("h.0.attn.W_pack", "h.0.attn.q_proj"),
    "keys and values": ("h.0.attn.to_kv", "h.0.attn.to_qkv"),
    "feed forward": ("h.0.mlp.gate_up_proj", "h.0.mlp.up_proj h.0.mlp.down_proj"),
    "numbered": ("h.0.mlp.w13", "h.0.mlp.w1 h.0.mlp.w3"),
    "under other names": ("m.h.0.attn.qkv_proj", "m.lm.h.0.attn.q_proj"),
    "in a renamed layer": ("h.0.attention.wqkv", "h.0.self_attn.q_proj"),
    "renamed": ("h.0.attn.query", "h.0.attn.q_proj"),
}
NOT_FUSED = {
    "parts": ("h.0.attn.q_proj", "h.0.attn.k_proj h.0.attn.v_proj"),
    "other layers": ("h.0.attn.qkv_proj", "h.1.attn.q_proj"),
    "towers": ("vision_model.h.0.attn.qkv", "language_model.h.0.self_attn.q_proj"),
    "attentions": ("h.0.self_attn.qkv_proj", "h.0.cross_attn.q_proj"),
    "both in one": ("h.0.attn.in_proj", "h.0.attn.in_proj h.0.attn.q_proj"),
    "router": ("h.0.mlp.gate", "h.0.mlp.gate_up_proj"),
    "same": ("h.0.attn.qkv h.0.mlp.w1", "h.0.attn.qkv h.0.mlp.w2"),
}


@pytest.mark.parametrize("case", FUSED)
def test_a_fused_layer_beside_its_parts(case):
    adapters = list(map(shapes, FUSED[case]))
    (found,) = fused_beside_parts(adapters)
    assert all(n in a for n, a in zip(found.names, adapters, strict=True))
    (turned,) = fused_beside_parts(adapters[::-1])
    assert {*turned.names} <= {*adapters[0], *adapters[1]}
    assert sorted([turned.whole, found.whole], key=str) in ([0, 1], [None, None])


@pytest.mark.parametrize("case", NOT_FUSED)
def test_layers_that_are_not_parts_of_each_other(case):
    assert list(fused_beside_parts(list(map(shapes, NOT_FUSED[case])))) == []


def test_a_fused_layer_is_refused_by_name(tmp_path):
    whole = samples.write(tmp_path / "whole", samples.linear("h.0.qkv_proj", m=9))
    parts = written(tmp_path / "parts", "h.0.v_proj h.0.q_proj")
    says = r"'h\.0\.q_proj' of .*parts .*'h\.0\.qkv_proj' is a fused layer.*convert one"
    with pytest.raises(io.AdapterError, match=says):
        io.load_peft([parts, whole])
    assert [c.kind for c in io.plan_peft([whole, parts]).conflicts] == ["fused"]
