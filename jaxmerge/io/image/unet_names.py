"""Modules of the UNets of Stable Diffusion 1, 2 and XL, as three programs name them.

diffusers says ``down_blocks.1.attentions.0.proj_in``; kohya's sd-scripts says
``down_blocks_1_attentions_0_proj_in`` for Stable Diffusion 1 and 2, and for XL, which
it trains in the original layout, ``input_blocks_4_1_proj_in``. The names are listed
from the structure of each UNet, so that a name which is not in it is never guessed.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

_ATTENTION = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    *tuple(f"attn2.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")),
)
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_RESNET = {  # diffusers -> original
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OTHER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


class UNet(NamedTuple):
    """The structure of a UNet whose blocks have 2 layers (3 on the way up).

    Attributes:
      down: transformer blocks in each attention of the blocks on the way down, 0 for a
        block without attention; the way up is the reverse.
      middle: the same of the block in the middle.
      contexts: numbers of text features that its cross-attention takes.
    """

    down: tuple[int, ...]
    middle: int
    contexts: tuple[int, ...]


UNETS = {
    "sd": UNet(down=(1, 1, 1, 0), middle=1, contexts=(768, 1024)),
    "sdxl": UNet(down=(0, 2, 10), middle=10, contexts=(2048,)),
}


@cache
def original_names(name: str) -> dict[str, str]:
    """Modules of a UNet in diffusers -> in the original layout.

    >>> original_names("sdxl")["down_blocks.1.attentions.0.proj_in"]
    'input_blocks.4.1.proj_in'
    """
    return dict(_modules(UNETS[name]))


@cache
def from_kohya() -> dict[str, str]:
    """Name of a module of a UNet in kohya's files -> in diffusers."""
    found: dict[str, str] = {}
    for name in UNETS:
        for module, original in original_names(name).items():
            found[module.replace(".", "_")] = module
            found[original.replace(".", "_")] = module
    return found


def _modules(unet: UNet) -> Iterator[tuple[str, str]]:
    yield from _OTHER.items()
    last = len(unet.down) - 1
    for block, depth in enumerate(unet.down):
        here = f"down_blocks.{block}"
        for layer in range(2):
            place = f"input_blocks.{1 + 3 * block + layer}"
            yield from _layer(here, layer, depth, place)
        if block < last:
            original = f"input_blocks.{3 * (block + 1)}.0.op"
            yield f"{here}.downsamplers.0.conv", original
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield from _attention("mid_block.attentions.0", "middle_block.1", unet.middle)
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    for block, depth in enumerate(reversed(unet.down)):
        here = f"up_blocks.{block}"
        for layer in range(3):
            yield from _layer(here, layer, depth, f"output_blocks.{3 * block + layer}")
        if block < last:
            behind = 2 if depth else 1
            original = f"output_blocks.{3 * block + 2}.{behind}.conv"
            yield f"{here}.upsamplers.0.conv", original


def _layer(block: str, layer: int, depth: int, place: str) -> Iterator[tuple[str, str]]:
    yield from _resnet(f"{block}.resnets.{layer}", f"{place}.0")
    if depth:
        yield from _attention(f"{block}.attentions.{layer}", f"{place}.1", depth)


def _resnet(module: str, original: str) -> Iterator[tuple[str, str]]:
    for layer, other in _RESNET.items():
        yield f"{module}.{layer}", f"{original}.{other}"


def _attention(module: str, original: str, depth: int) -> Iterator[tuple[str, str]]:
    layers = ["proj_in", "proj_out"]
    for block in range(depth):
        start = f"transformer_blocks.{block}"
        layers += [f"{start}.{layer}" for layer in (*_ATTENTION, *_FEED_FORWARD)]
    for layer in layers:
        yield f"{module}.{layer}", f"{original}.{layer}"
