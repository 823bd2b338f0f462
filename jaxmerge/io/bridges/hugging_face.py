"""Names of Hugging Face for the layers of tunix and gemma.

Both keep the order of heads and of rotated features that Hugging Face has, so that a
module is the same matrix under either name.
"""

import re

from jaxmerge.io.bridges.pairs import TreePath

_LAYER = re.compile(r"(?:layers\.|layer_)(\d+)\.(attn|mlp)\.(\w+)")
_ATTENTION = {
    **{name: (name,) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    "q_einsum": ("q_proj",),
    "kv_einsum": ("k_proj", "v_proj"),
    "qkv_einsum": ("q_proj", "k_proj", "v_proj"),
    "attn_vec_einsum": ("o_proj",),
}
_FEED_FORWARD = {
    **{name: (name,) for name in ("gate_proj", "up_proj", "down_proj")},
    "gating_einsum": ("gate_proj", "up_proj"),
    "linear": ("down_proj",),
}


def names(module: TreePath) -> tuple[str, ...]:
    """The modules of Hugging Face that a module stands for; its own name if it is new.

    >>> names(("layers", "3", "attn", "kv_einsum"))
    ('model.layers.3.self_attn.k_proj', 'model.layers.3.self_attn.v_proj')
    >>> names(("vision", "head"))
    ('vision.head',)
    """
    own = ".".join(module)
    match = _LAYER.fullmatch(own)
    if match is None:
        return (own,)
    number, block, layer = match.groups()
    known = _ATTENTION if block == "attn" else _FEED_FORWARD
    if layer not in known:
        return (own,)
    place = f"model.layers.{number}.{'self_attn' if block == 'attn' else 'mlp'}"
    return tuple(f"{place}.{name}" for name in known[layer])
