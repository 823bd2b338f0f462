"""PEFT's classifiers of every family of texts, planned, merged and loaded again."""

import jax
import model_samples as models
import numpy as np
import pytest
import safetensors.torch
from tiers import in_turn

import jaxmerge as jm
from jaxmerge.models import with_updates
from jaxmerge.stacks import task_updates
from jaxmerge.tasks import load_base, task_heads
from jaxmerge.tasks.heads import check_adapters, head_shape

pytestmark = [
    pytest.mark.usefixtures("as_a_user"),
    pytest.mark.filterwarnings("ignore"),  # those of torch and PEFT
]
DECODER = ["q_proj", "v_proj", "o_proj", "down_proj"]
GROUPED = {"num_key_value_heads": 1}
FAMILIES = {
    "Mistral": (GROUPED | {"sliding_window": 3}, DECODER),
    "Qwen2": (GROUPED, DECODER),
    "Qwen3": (GROUPED | {"head_dim": 6}, DECODER),
    "Roberta": ({"type_vocab_size": 1}, ["query", "value", "output.dense"]),
}
TOKENS = models.TOKENS.numpy().astype(np.int32)
INPUTS = {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS)}


def close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("family", in_turn([*FAMILIES], quick=2))
def test_a_merge_computes_here_what_it_computes_in_peft(family, tmp_path):
    sizes, modules = FAMILIES[family]
    models.classifier(family, **sizes).save_pretrained(tmp_path / "base")
    config = {"target_modules": modules, "task_type": "SEQ_CLS"}
    folders, alone = [tmp_path / "one", tmp_path / "two"], []
    for seed, folder in enumerate(folders):
        ranked = config | {"r": 2 + seed}
        peft_model = models.adapted(tmp_path / "base", folder, seed=seed, **ranked)
        alone.append(models.outputs(peft_model))

    assert not jm.plan(folders, heads="keep").plan.conflicts
    merged = tmp_path / "merged"
    jm.merge(folders, "concat|scale(0.5)", heads="keep", out=merged)

    base = load_base(tmp_path / "base")
    adapters = jm.io.load_peft(folders, heads="keep")
    check_adapters(base, adapters, INPUTS)
    heads = task_heads(base, adapters)
    merge = jm.parse("concat|scale(0.5)").run(adapters.stacks)

    @jax.jit
    def features(updates):
        return with_updates(base.apply, updates)(base.params, INPUTS)

    for task, (name, expected) in enumerate(zip(adapters.names, alone, strict=True)):
        assert head_shape(heads[name]) == (2, models.WIDTH)
        own = features(task_updates(adapters.stacks, task))
        close(base.logits(heads[name], own), expected)

        loaded = models.with_adapter(tmp_path / "base", merged)
        head = safetensors.torch.load_file(merged / "heads" / f"{name}.safetensors")
        found = loaded.get_base_model().load_state_dict(head, strict=False)
        assert not found.unexpected_keys
        both = models.outputs(loaded)
        close(base.logits(heads[name], features(merge)), both)
        assert np.abs(both - expected).max() > 1e-3


def test_a_head_of_one_layer_is_not_that_of_a_roberta(tmp_path):
    """As a BERT's adapter beside RoBERTa's base, or a head that was cut off."""
    sizes, modules = FAMILIES["Roberta"]
    models.classifier("Roberta", **sizes).save_pretrained(tmp_path / "base")
    folder = tmp_path / "task"
    config = {"target_modules": modules, "task_type": "SEQ_CLS"}
    models.adapted(tmp_path / "base", folder, **config)
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for kind in ("weight", "bias"):
        whole = f"base_model.model.classifier.{kind}"
        tensors[whole] = tensors.pop(f"base_model.model.classifier.out_proj.{kind}")
    safetensors.torch.save_file(tensors, path)
    adapters = jm.io.load_peft([folder], heads="keep")
    with pytest.raises(jm.Refusal, match=r"no head classifier\.out_proj\.weight.*'cl"):
        task_heads(load_base(tmp_path / "base"), adapters)
