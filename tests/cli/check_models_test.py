"""``jaxmerge check`` on a Llama, on CLIP, and on a real adapter beside torch."""

import gzip
import json

import jax
import learn_samples
import numpy as np
import pytest
import safetensors.numpy
from check_samples import ask, entropy_of
from cli_samples import document, refuse
from learn_samples import TASKS

from experiments.nli6.data import minilm_folder
from jaxmerge.tasks import load_base
from jaxmerge.tasks.images import read_images

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.mark.thorough
def test_llama_with_labels(tmp_path):
    learn_samples.llama(tmp_path / "base")
    layer = "model.layers.0.self_attn"
    modules = [f"{layer}.q_proj", f"{layer}.o_proj"]
    learn_samples.adapters(tmp_path / "in", modules, head="score", tasks=TASKS[:2])
    learn_samples.texts(tmp_path / "data")  # all of class 0
    with gzip.open(tmp_path / "data" / "dtd.jsonl.gz", "rt") as file:
        assert '"label": 0' in file.readline()
    for entry in document(*ask(tmp_path, *TASKS[:2]))["adapters"].values():
        assert entry["rows"] == 24
        assert entry["most_frequent"] == 1
        assert 0 <= entry["accuracy"] <= 1


@pytest.mark.thorough
def test_clip_with_labels(tmp_path):
    learn_samples.clip(tmp_path / "base")
    module = "vision_model.encoder.layers.0.self_attn.v_proj"
    learn_samples.adapters(tmp_path / "in", [module], head=None, tasks=("cars",))
    learn_samples.images(tmp_path / "data")
    heads = learn_samples.text_vectors(tmp_path / "heads.safetensors")
    known = {"text_heads": heads, "logit_scale": 20}
    base = load_base(tmp_path / "base")
    file = tmp_path / "data" / "cars.npz"
    images = read_images(file, size=8, channels=3)
    vectors = safetensors.numpy.load_file(heads)["cars"]
    features = jax.jit(base.apply)(base.params, images)
    plain = np.asarray(base.logits(vectors, features))
    np.savez(file, images=images, labels=plain.argmax(axis=1).astype(np.uint8))
    entry = document(*ask(tmp_path, "cars", **known))["adapters"]["cars"]
    assert entry["base_accuracy"] == 1
    assert entry["base_entropy"] == pytest.approx(entropy_of(20 * plain), rel=1e-4)
    assert "--logit-scale" in refuse(*ask(tmp_path, "cars", text_heads=heads))
    np.savez(file, images=images)
    assert document(*ask(tmp_path, "cars", **known))["adapters"]["cars"]["verdict"] == (
        "no labels"
    )
    for labels, message in [
        (np.zeros(5, int), "labels (5,) in int64; expected whole numbers (12,)"),
        (np.zeros(12), "float64; expected whole numbers"),
        (np.full(12, 3), "labels[0] is 3; expected the number of a class of the head"),
    ]:
        np.savez(file, images=images, labels=labels)
        assert message in refuse(*ask(tmp_path, "cars", **known))
    with file.open("wb") as opened:
        np.save(opened, images)
    assert "cars.npz: a single array" in refuse(*ask(tmp_path, "cars", **known))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_real_adapter_is_as_right_as_in_torch(shared, capfd):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    try:
        base = minilm_folder()
    except ValueError as error:
        pytest.skip(str(error))
    folder, classes, rows = shared / "adapters" / "minilm_nli6" / "sick", 3, 36
    data = ["--data", shared / "data" / "text", "--limit", rows, "--max-length", 80]
    with jax.enable_x64(False):
        found = document("check", folder, "--base", base, *data)["adapters"]["sick"]
    file = shared / "data" / "text" / "sick" / "validation.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        examples = [json.loads(line) for line in lines]
    examples = [examples[i * len(examples) // rows] for i in range(rows)]
    labels = np.array([example["label"] for example in examples])
    tokens = transformers.AutoTokenizer.from_pretrained(base)(
        *([example[name] for example in examples] for name in ("text_a", "text_b")),
        padding=True,
        return_tensors="pt",
    )
    model = transformers.BertForSequenceClassification.from_pretrained(
        base, num_labels=classes
    )
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    capfd.readouterr()
    head = model.base_model.model.classifier.modules_to_save["default"]
    with torch.no_grad():
        adapted = model(**tokens).logits.numpy()
        with model.disable_adapter():
            features = model.get_base_model().bert(**tokens).pooler_output
        plain = head(features).numpy()
    right, base_right = (x.argmax(axis=1) == labels for x in (adapted, plain))
    assert found["rows"] == rows
    assert found["accuracy"] == right.mean()
    assert found["base_accuracy"] == base_right.mean()
    assert found["gained"] == (right & ~base_right).sum()
    assert found["entropy"] == pytest.approx(entropy_of(adapted), abs=1e-4)
    assert found["base_entropy"] == pytest.approx(entropy_of(plain), abs=1e-4)
