"""Tiny models of transformers and adapters of PEFT, with random weights."""

import warnings

import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

WIDTH, WORDS = 16, 40
_SIZES = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TOKENS = torch.arange(14).reshape(2, 7) * 3 % WORDS


def llama(*, tied=False):
    config = transformers.LlamaConfig(
        **_SIZES, num_key_value_heads=1, tie_word_embeddings=tied
    )
    return _made(transformers.LlamaForCausalLM, config)


def gpt2():
    """Layers with weights [n, m], some of them square; a tied head."""
    sizes = {"vocab_size": WORDS, "n_positions": 16, "n_embd": WIDTH}
    sizes |= {"n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
    return _made(transformers.GPT2LMHeadModel, transformers.GPT2Config(**sizes))


def bert(kind="BertForSequenceClassification"):
    config = transformers.BertConfig(**_SIZES, max_position_embeddings=16)
    return _made(getattr(transformers, kind), config)


def classifier(family, **sizes):
    """A classifier of texts of two classes, whose padding no text of ours holds."""
    config = getattr(transformers, f"{family}Config")(
        **_SIZES | sizes, max_position_embeddings=64, pad_token_id=38
    )
    return _made(getattr(transformers, f"{family}ForSequenceClassification"), config)


def clip():
    """A vision tower, whose first layer is a convolution."""
    sizes = {name: size for name, size in _SIZES.items() if name != "vocab_size"}
    config = transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    return _made(transformers.CLIPVisionModel, config)


def _made(kind, config):
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for value in model.parameters():  # norms and biases too
            value.copy_(torch.randn_like(value) * 0.2)
    return model


def outputs(model):
    """What a model computes."""
    with torch.no_grad():
        if "pixel_values" in model.forward.__annotations__ or model.main_input_name == (
            "pixel_values"
        ):
            torch.manual_seed(1)
            found = model(pixel_values=torch.randn(2, 3, 8, 8))[0]
        else:
            found = model(input_ids=TOKENS)[0]
    return found.numpy()


def adapted(folder, out, *, seed=2, **config):
    """An adapter with random factors on a saved model; saved, and given with it."""
    config = {"r": 3, "lora_alpha": 5, "init_lora_weights": False, **config}
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(_base(folder), peft.LoraConfig(**config)).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    value.copy_(torch.randn_like(value) * 0.3)
        model.save_pretrained(out, save_embedding_layers=False)
    return model


def with_adapter(folder, adapter):
    """A saved model with a saved adapter, as PEFT loads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(_base(folder), adapter).eval()


def _base(folder):
    kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32)


def merged(model):
    """The same by PEFT's own merge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.merge_and_unload()


def loaded(folder):
    """A folder as transformers loads it, everything in it used and nothing missing."""
    kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model, found = getattr(transformers, kind).from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(found.values()), found
    return model.eval()
