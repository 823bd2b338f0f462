"""flax ``nnx.LoRA`` and ``nnx.LoRALinear``: ``<layer>/lora_a`` and ``lora_b``.

A wrapped layer has them beside its ``base_module``, an `nnx.LoRALinear` below ``lora``.
The library computes ``x @ a @ b`` and multiplies by nothing.
"""

from jaxmerge.io.bridges.pairs import Role, TreePath

_NAMES = ("lora_a", "lora_b")


def role(path: TreePath) -> Role | None:
    """The module of a factor and which one it is.

    >>> role(("layers", "0", "q_proj", "lora", "lora_a"))
    (('layers', '0', 'q_proj'), 'a')
    """
    if path[-1] not in _NAMES:
        return None
    module = path[:-1]
    module = module[:-1] if module[-1:] == ("lora",) else module
    return module, "a" if path[-1] == "lora_a" else "b"


def new_paths(module: TreePath) -> tuple[TreePath, TreePath]:
    """Where a and b of a module are in a tree that is made anew."""
    return (*module, "lora_a"), (*module, "lora_b")
