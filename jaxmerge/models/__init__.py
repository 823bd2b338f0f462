"""Flax models with Hugging Face names, and merged updates for any Flax model."""

from typing import TYPE_CHECKING, Any

from jaxmerge.models.adapt import with_taps, with_updates
from jaxmerge.models.bert import Bert, BertConfig, bert_apply, init_bert
from jaxmerge.models.bert_hub import load_bert, save_bert
from jaxmerge.models.blocks import (
    Block,
    Blocks,
    Stream,
    bert_blocks,
    decoder_blocks,
    vision_blocks,
)
from jaxmerge.models.decoder import (
    Decoder,
    decoder_apply,
    init_decoder,
    vocabulary_head,
)
from jaxmerge.models.decoder_config import DecoderConfig
from jaxmerge.models.decoder_hub import load_decoder, save_decoder
from jaxmerge.models.kernels import add_to_params, layer_weights, linear_layers
from jaxmerge.models.linear_head import head_from_hub, head_logits
from jaxmerge.models.rope import Llama3Scaling
from jaxmerge.models.routing import (
    RoutedUpdate,
    routed_module,
    routed_product,
    token_gates,
)
from jaxmerge.models.vit import (
    VisionConfig,
    VisionTower,
    init_vision,
    vision_apply,
)
from jaxmerge.models.vit_hub import load_vision, save_vision

if TYPE_CHECKING:
    from jaxmerge.models.nnx_models import nnx_apply

__all__ = [
    "Bert",
    "BertConfig",
    "Block",
    "Blocks",
    "Decoder",
    "DecoderConfig",
    "Llama3Scaling",
    "RoutedUpdate",
    "Stream",
    "VisionConfig",
    "VisionTower",
    "add_to_params",
    "bert_apply",
    "bert_blocks",
    "decoder_apply",
    "decoder_blocks",
    "head_from_hub",
    "head_logits",
    "init_bert",
    "init_decoder",
    "init_vision",
    "layer_weights",
    "linear_layers",
    "load_bert",
    "load_decoder",
    "load_vision",
    "nnx_apply",
    "routed_module",
    "routed_product",
    "save_bert",
    "save_decoder",
    "save_vision",
    "token_gates",
    "vision_apply",
    "vision_blocks",
    "vocabulary_head",
    "with_taps",
    "with_updates",
]


def __getattr__(name: str) -> Any:
    """Loads nnx for those who use it, which takes as long as all of the rest."""
    if name != "nnx_apply":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxmerge.models import nnx_models

    return nnx_models.nnx_apply
