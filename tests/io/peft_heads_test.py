"""PEFT loads what was merged from classifiers, and their heads go in by hand."""

import numpy as np
import pytest
import safetensors.torch

from jaxmerge import io
from jaxmerge.types import LowRank

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch and PEFT

CLASSIFIERS = {
    "SEQ_CLS": "BertForSequenceClassification",
    "TOKEN_CLS": "BertForTokenClassification",
    "QUESTION_ANS": "BertForQuestionAnswering",
}
TOKENS = torch.arange(4, 12)[None]


def base_model(kind, labels):
    """The same weights below the head every time."""
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, num_labels=labels,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, CLASSIFIERS[kind])(config).eval()


def logits(model):
    with torch.no_grad():
        found = model(input_ids=TOKENS)
    return (found.start_logits if "start_logits" in found else found.logits).numpy()


def trained(kind, labels, folder):
    """An adapter with a head of its own, as PEFT saves it; and its model's logits."""
    options = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]}
    config = peft.LoraConfig(task_type=kind, **options)
    model = peft.get_peft_model(base_model(kind, labels), config).eval()
    torch.manual_seed(labels)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_peft_loads_a_merge_whose_heads_lie_apart(kind, tmp_path):
    expected = trained(kind, 2, tmp_path / "task")
    adapters = io.load_peft([tmp_path / "task"], heads="keep")
    (task,) = adapters.names
    updates = {m: LowRank(s.b[0], s.a[0]) for m, s in adapters.stacks.items()}
    out = tmp_path / "out"
    io.save_peft(out, updates, like=adapters)
    model = peft.PeftModel.from_pretrained(base_model(kind, 2), str(out)).eval()
    assert np.abs(logits(model) - expected).max() > 0.01
    head = safetensors.torch.load_file(out / "heads" / f"{task}.safetensors")
    found = model.get_base_model().load_state_dict(head, strict=False)
    assert not found.unexpected_keys
    np.testing.assert_allclose(logits(model), expected, atol=1e-5)

    io.save_peft(tmp_path / "inside", updates, like=adapters, heads="first")
    model = peft.PeftModel.from_pretrained(base_model(kind, 2), tmp_path / "inside")
    assert model.peft_config["default"].task_type == kind
    np.testing.assert_allclose(logits(model.eval()), expected, atol=1e-5)


def test_the_card_says_how_to_use_the_heads(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for labels, folder in enumerate(folders, 2):
        trained("SEQ_CLS", labels, folder)
    adapters = io.load_peft(folders, heads="keep")
    updates = {m: LowRank(s.b[0], s.a[0]) for m, s in adapters.stacks.items()}
    io.save_peft(tmp_path / "out", updates, like=adapters, card="concat")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`heads/a.safetensors`, `heads/b.safetensors`" in card
    assert "load_state_dict" in card
    io.save_peft(tmp_path / "in", updates, like=adapters, heads="first", card="concat")
    assert "load_state_dict" not in (tmp_path / "in" / "README.md").read_text()
