"""Modules of the transformer of FLUX.1 in kohya's files and in diffusers.

The original layout, which kohya's sd-scripts trains, holds queries, keys and values
(and in a single block the input of the MLP) as one fused layer; diffusers has a layer
for each, which are the rows of the fused one, one behind the other.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

DOUBLE_BLOCKS, SINGLE_BLOCKS = 19, 38
_MLP = 4  # outputs of the first layer of an MLP, in hidden sizes
_DOUBLE = {  # original -> diffusers, of a double block
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}


class Fused(NamedTuple):
    """The modules of diffusers that are the rows of one layer of the original.

    Attributes:
      sizes: rows of each, in numbers of inputs of the layer; of no use for one module.
    """

    modules: tuple[str, ...]
    sizes: tuple[int, ...]

    def rows(self, m: int, n: int) -> list[slice] | None:
        """The rows of each module in a layer [m, n]; None if the layer is another."""
        if len(self.modules) == 1:
            return [slice(0, m)]
        if m != n * sum(self.sizes):
            return None
        stops = [n * sum(self.sizes[: place + 1]) for place in range(len(self.sizes))]
        return [slice(b - n * s, b) for b, s in zip(stops, self.sizes, strict=True)]


@cache
def from_kohya() -> dict[str, Fused]:
    """Name of a module of FLUX.1 in kohya's files -> its modules in diffusers.

    >>> from_kohya()["single_blocks_0_linear1"].modules[3]
    'single_transformer_blocks.0.proj_mlp'
    """
    return dict(_modules())


@cache
def flat() -> dict[str, str]:
    """Modules of diffusers with underscores for dots (OneTrainer) -> their names."""
    modules = [module for fused in from_kohya().values() for module in fused.modules]
    return {module.replace(".", "_"): module for module in modules}


def _modules() -> Iterator[tuple[str, Fused]]:
    for block in range(DOUBLE_BLOCKS):
        for name, parts in _DOUBLE.items():
            modules = tuple(f"transformer_blocks.{block}.{part}" for part in parts)
            yield f"double_blocks_{block}_{name}", Fused(modules, (1, 1, 1))
    for block in range(SINGLE_BLOCKS):
        for name, parts in _SINGLE.items():
            start = f"single_transformer_blocks.{block}"
            modules = tuple(f"{start}.{part}" for part in parts)
            yield f"single_blocks_{block}_{name}", Fused(modules, (1, 1, 1, _MLP))
