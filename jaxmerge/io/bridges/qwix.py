"""qwix ``LoraProvider``: ``<weight>_lora_a`` and ``_lora_b`` beside the weight.

A weight called ``kernel`` or ``w`` is its module; any other gives the module its name.
The factors of an einsum and of a convolution keep the axes of the weight. The update is
``alpha / r * a @ b``, with rank and alpha from the rule, which no checkpoint holds.
"""

import re

from jaxmerge.io.bridges.pairs import Role, TreePath

_FACTOR = re.compile(r"(?P<weight>.+)_lora_(?P<part>[ab])")
_PLAIN = ("kernel", "w")


def role(path: TreePath) -> Role | None:
    """The module of a factor and which one it is.

    >>> role(("layers_0", "q_proj", "kernel_lora_b"))
    (('layers_0', 'q_proj'), 'b')
    >>> role(("experts", "up_lora_a"))
    (('experts', 'up'), 'a')
    """
    match = _FACTOR.fullmatch(path[-1])
    if match is None:
        return None
    weight = () if match["weight"] in _PLAIN else (match["weight"],)
    return (*path[:-1], *weight), "a" if match["part"] == "a" else "b"


def new_paths(module: TreePath) -> tuple[TreePath, TreePath]:
    """Where a and b of a module are in a tree that is made anew."""
    return (*module, "kernel_lora_a"), (*module, "kernel_lora_b")
