"""Names that training wraps: taken off with a note, or refused, never written."""

import io_samples as samples
import numpy as np
import pytest

from jaxmerge import io
from jaxmerge.refusals import Option

PEFT = "base_model.model."


def wrapped(change, modules=("model.h.0.fc", "model.h.1.fc"), **tensors):
    """Tensors of a few modules under changed keys."""
    found = {}
    for seed, module in enumerate(modules):
        found |= samples.linear(module, seed=10 * seed)
    return {change(key): value for key, value in found.items()} | tensors


def test_known_wrappers_are_taken_off_with_a_note(tmp_path):
    plain = samples.load_one(samples.write(tmp_path / "plain", wrapped(str)))
    changes = {
        "_orig_mod": lambda key: f"_orig_mod.{key}",
        "module": lambda key: f"module.{key}",
        "module of a base": lambda key: key.replace(PEFT, f"{PEFT}module."),
        "_orig_mod of layers": lambda key: key.replace(".fc", "._orig_mod.fc"),
        "_orig_mod behind": lambda key: key.replace(".lora_", "._orig_mod.lora_"),
        "model_state.model": lambda key: f"model_state.model.{key}",
        "model_state.model bare": lambda k: f"model_state.model.{k.removeprefix(PEFT)}",
        "model": lambda key: f"model.{key}",
        "_fsdp_wrapped_module": lambda key: (
            f"module.{key}".replace(".fc", "._fsdp_wrapped_module.fc")
            .replace(PEFT, f"{PEFT}_fsdp_wrapped_module.")
        ),
        "_checkpoint_wrapped_module": lambda key: key.replace(
            ".fc", "._checkpoint_wrapped_module.fc"
        ),
    }  # fmt: skip
    for name, change in changes.items():
        folder = samples.write(tmp_path / name, wrapped(change))
        found = samples.load_one(folder)
        assert found.stacks.keys() == plain.stacks.keys(), name
        for module, stack in plain.stacks.items():
            np.testing.assert_array_equal(found.stacks[module].b, stack.b)
        (note,) = found.notes
        assert note.startswith(f"{folder}: took wrappers off")
        assert repr(name.split()[0]) in note
        assert str(io.plan_peft([folder]).notes[0]) == note
    assert plain.notes == ()


def test_layers_that_are_only_called_so_keep_their_names(tmp_path):
    tensors = wrapped(str, ("model.net.module", "state_dict.fc", "x.model.fc"))
    tensors[f"{PEFT}head.module.weight"] = samples.random(3, 5)
    found = samples.load_one(samples.write(tmp_path / "a", tensors), heads="keep")
    assert list(found.stacks) == ["model.net.module", "state_dict.fc", "x.model.fc"]
    assert list(found.heads[0]) == ["head.module.weight"]
    assert found.notes == ()


def test_an_unknown_wrapper_is_refused_with_what_mends_it(tmp_path):
    folders = [
        samples.write(tmp_path / name, wrapped(lambda key: f"tuner.{key}"))
        for name in "ab"
    ]
    with pytest.raises(io.AdapterError, match="attach nowhere") as refused:
        io.load_peft(folders)
    option = Option("strip_prefix", f"tuner.{PEFT}", quoted=True)
    assert option in refused.value.message
    stripped = io.load_peft(folders, strip_prefix=f"tuner.{PEFT}")
    assert list(stripped.stacks) == ["model.h.0.fc", "model.h.1.fc"]
    twice = samples.write(tmp_path / "twice", wrapped(lambda key: PEFT + key))
    with pytest.raises(io.AdapterError, match=r"strip_prefix='base_model\.model\.'"):
        io.load_peft([twice])
    confirmed = io.load_peft([twice], add_prefix=PEFT)
    assert next(iter(confirmed.stacks)) == f"{PEFT}model.h.0.fc"


def test_two_names_that_become_one_are_refused(tmp_path):
    tensors = wrapped(str) | wrapped(lambda key: f"_orig_mod.{key}")
    with pytest.raises(io.AdapterError, match="name one tensor"):
        samples.load_one(samples.write(tmp_path / "a", tensors))
    heads = samples.with_head()
    heads |= {k.replace("classifier", "_orig_mod.classifier"): heads[k] for k in heads}
    with pytest.raises(io.AdapterError, match="name one tensor"):
        samples.load_one(samples.write(tmp_path / "b", heads), heads="keep")


def test_a_pattern_that_sees_a_wrapper_leaves_the_scale_unclear(tmp_path):
    tensors = wrapped(lambda key: key.replace(".h.", "._orig_mod.h."))
    harmless = samples.write(tmp_path / "a", tensors, alpha_pattern={r"h\.0\.fc": 4})
    scales = samples.load_one(harmless).sources[0].scales
    assert scales == {"model.h.0.fc": 1.0, "model.h.1.fc": 2.0}
    for pattern in ("model.h.0.fc", r"model\._orig_mod\.h\.0\.fc"):
        folder = samples.write(tmp_path / "b", tensors, alpha_pattern={pattern: 4})
        with pytest.raises(io.AdapterError, match=r"config.json: a pattern.*unclear"):
            samples.load_one(folder)


def test_wrappers_in_the_rank_pattern_of_adalora(tmp_path):
    start = f"_orig_mod.{PEFT}fc."
    tensors = {
        f"{start}lora_A": samples.random(2, 5),
        f"{start}lora_B": samples.random(6, 2),
        f"{start}lora_E": samples.random(2, 1),
    }
    ranks = {"_orig_mod.base_model.model.fc.lora_E": [True, True, False]}
    folder = samples.write(
        tmp_path / "a", tensors, peft_type="ADALORA", init_r=3, rank_pattern=ranks
    )
    assert samples.load_one(folder).stacks["fc"].ranks == (2,)


@pytest.mark.parametrize("copy", ["modules_to_save", "modules_to_save.default"])
def test_lora_on_a_module_that_is_saved_whole(tmp_path, copy):
    tensors = samples.linear() | samples.linear(f"classifier.{copy}", m=3, n=6)
    tensors |= samples.linear("classifier.original_module", m=3, n=6)
    with pytest.raises(io.AdapterError, match="'classifier' is saved whole"):
        samples.load_one(samples.write(tmp_path / "a", tensors), heads="keep")


def test_the_copy_of_the_base_beside_a_saved_module_is_left_out(tmp_path):
    saved = {
        f"{PEFT}classifier.modules_to_save.default.weight": samples.random(3, 6),
        f"{PEFT}classifier.original_module.weight": samples.random(3, 6, seed=1),
    }
    folder = samples.write(tmp_path / "a", samples.linear() | saved)
    found = samples.load_one(folder, heads="keep")
    np.testing.assert_array_equal(
        found.heads[0]["classifier.weight"], samples.random(3, 6)
    )
    assert "left out the copies of the base" in found.notes[0]
    del saved[f"{PEFT}classifier.modules_to_save.default.weight"]
    folder = samples.write(tmp_path / "b", samples.linear() | saved)
    with pytest.raises(io.AdapterError, match="module itself is not in the file"):
        samples.load_one(folder, heads="keep")


@pytest.mark.parametrize("shape", [(0,), (0, 6), (3, 0)])
def test_a_saved_module_that_was_not_gathered(tmp_path, shape):
    tensors = samples.linear()
    tensors[f"{PEFT}classifier.weight"] = np.zeros(shape, np.float32)
    folder = samples.write(tmp_path / "a", tensors)
    with pytest.raises(io.AdapterError, match=r"'classifier\.weight' is empty.*gather"):
        samples.load_one(folder, heads="first")


def test_factors_that_were_not_gathered(tmp_path):
    tensors = {key: np.zeros(0, np.float32) for key in samples.linear()}
    with pytest.raises(io.AdapterError, match=r"'h\.0\.fc' is empty.*gather"):
        samples.load_one(samples.write(tmp_path / "a", tensors))
