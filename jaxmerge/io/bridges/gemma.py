"""The library gemma: ``<layer>/lora/a`` and ``b`` of linen modules.

An einsum that makes keys and values, or gate and up projection, has one a for both. The
library computes ``x @ a @ b`` and multiplies by nothing.
"""

from jaxmerge.io.bridges.pairs import Role, TreePath


def role(path: TreePath) -> Role | None:
    """The module of a factor and which one it is.

    >>> role(("layer_0", "attn", "q_einsum", "lora", "a"))
    (('layer_0', 'attn', 'q_einsum'), 'a')
    """
    if path[-2:-1] != ("lora",) or path[-1] not in ("a", "b"):
        return None
    return path[:-2], "a" if path[-1] == "a" else "b"
