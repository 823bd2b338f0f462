"""MaxText: the factors of qwix under its own names, and heads in an order of their own.

Models with the rotary embedding of Llama 3.1 keep the two halves of a head's features
by turns, in queries and keys, and divide the kernel of queries by the square root of
the size of a head, as attention would divide them. Both are linear, so they are undone
in b. Qwen's are kept as Hugging Face has them.
"""

import re

from jaxmerge.io.bridges.pairs import Heads, TreePath
from jaxmerge.io.errors import AdapterError

_LAYER = re.compile(r"(?:decoder\.)?layers[._](\d+)\.(\w+\.\w+)")
_MODULES = {
    "self_attention.query": "self_attn.q_proj",
    "self_attention.key": "self_attn.k_proj",
    "self_attention.value": "self_attn.v_proj",
    "self_attention.out": "self_attn.o_proj",
    "mlp.wi_0": "mlp.gate_proj",
    "mlp.wi_1": "mlp.up_proj",
    "mlp.wo": "mlp.down_proj",
}


def names(module: TreePath) -> tuple[str, ...]:
    """The module of Hugging Face that a module of MaxText is.

    >>> names(("params", "decoder", "layers", "3", "mlp", "wi_0"))
    ('model.layers.3.mlp.gate_proj',)
    """
    own = ".".join(module[1:] if module[:1] == ("params",) else module)
    match = _LAYER.fullmatch(own)
    if match is None or match[2] not in _MODULES:
        raise AdapterError(
            f"module {own!r} is none of a decoder of MaxText whose place in Hugging "
            "Face's model is known; read the tree as one of qwix, which keeps "
            "the names of MaxText"
        )
    return (f"model.layers.{match[1]}.{_MODULES[match[2]]}",)


def llama_heads(module: TreePath) -> Heads:
    """How the heads of a module lie in models of Llama 3.1."""
    last = module[-1]
    return Heads(alternate=last in ("query", "key"), divided=last == "query")
