"""Modules of the text encoders of CLIP in kohya's files and in diffusers."""

from functools import cache

_LAYERS = 32  # of the largest, OpenCLIP's bigG
_PARTS = (
    *tuple(f"self_attn.{x}_proj" for x in "qkv"),
    *("self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
)
COMPONENTS = {  # beginning of kohya's names -> component of diffusers
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}


@cache
def from_kohya() -> dict[str, str]:
    """Name of a module in kohya's files, behind its beginning -> in diffusers.

    >>> from_kohya()["text_model_encoder_layers_0_mlp_fc1"]
    'text_model.encoder.layers.0.mlp.fc1'
    """
    modules = ["text_projection"] + [
        f"text_model.encoder.layers.{layer}.{part}"
        for layer in range(_LAYERS)
        for part in _PARTS
    ]
    return {module.replace(".", "_"): module for module in modules}
