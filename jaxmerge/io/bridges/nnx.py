"""flax ``nnx.LoRA`` and ``nnx.LoRALinear``: ``<layer>/lora_a`` and ``lora_b``.

A wrapped layer has them beside its ``base_module``, an `nnx.LoRALinear` below ``lora``.
The library computes ``x @ a @ b`` and multiplies by nothing.
"""

from jaxmerge.io.bridges.pairs import Role, TreePath

_PARTS = {"lora_a": "a", "lora_b": "b"}


def role(path: TreePath) -> Role | None:
    """The module of a factor and which one it is.

    >>> role(("layers", "0", "q_proj", "lora", "lora_a"))
    (('layers', '0', 'q_proj'), 'a')
    """
    part = _PARTS.get(path[-1])
    if part is None:
        return None
    module = path[:-1]
    return (module[:-1] if module[-1:] == ("lora",) else module), part


def new_paths(module: TreePath) -> tuple[TreePath, TreePath]:
    """Where a and b of a module are in a tree that is made anew."""
    return (*module, "lora_a"), (*module, "lora_b")
