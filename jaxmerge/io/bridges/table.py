"""The libraries of JAX whose trees are read and written: a row each.

Nothing here imports JAX or one of the libraries.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxmerge.io.bridges import gemma, hugging_face, keras, maxtext, nnx, qwix
from jaxmerge.io.bridges.pairs import Heads, Role, TreePath
from jaxmerge.io.options import BridgeName


class Bridge(NamedTuple):
    """How one library names, shapes and scales its factors.

    Attributes:
      says: what such a tree is, for messages.
      role: of an array, by its path: its module and which factor it is.
      names: of the modules that a module of the tree stands for.
      matrices: factors have no axes of inputs or outputs but one each.
      unscaled: the library multiplies ``a @ b`` by nothing.
      new_paths: where the factors of a new module go; None where the tree of the model
        has to say it.
      heads: how the outputs of a module lie in b, where that is not as in Hugging Face.
    """

    says: str
    role: Callable[[TreePath], Role | None]
    names: Callable[[TreePath], tuple[str, ...]]
    matrices: bool
    unscaled: bool
    new_paths: Callable[[TreePath], tuple[TreePath, TreePath]] | None
    heads: Callable[[TreePath], Heads] | None = None


def _own_name(module: TreePath) -> tuple[str, ...]:
    inner = module[1:] if module[:1] == ("params",) else module
    return (".".join(inner) or "model",)


def _hugging_face_name(module: TreePath) -> tuple[str, ...]:
    return hugging_face.names(module[1:] if module[:1] == ("params",) else module)


BRIDGES: dict[BridgeName, Bridge] = {
    "nnx": Bridge(
        "flax nnx.LoRA",
        nnx.role,
        _own_name,
        matrices=True,
        unscaled=True,
        new_paths=nnx.new_paths,
    ),
    "qwix": Bridge(
        "a LoRA tree of qwix",
        qwix.role,
        _own_name,
        matrices=False,
        unscaled=False,
        new_paths=qwix.new_paths,
    ),
    "tunix": Bridge(
        "a LoRA tree of tunix",
        qwix.role,
        _hugging_face_name,
        matrices=False,
        unscaled=False,
        new_paths=None,
    ),
    "maxtext-llama": Bridge(
        "a LoRA tree of MaxText's Llama 3.1",
        qwix.role,
        maxtext.names,
        matrices=False,
        unscaled=False,
        new_paths=None,
        heads=maxtext.llama_heads,
    ),
    "maxtext-qwen": Bridge(
        "a LoRA tree of MaxText's Qwen",
        qwix.role,
        maxtext.names,
        matrices=False,
        unscaled=False,
        new_paths=None,
    ),
    "gemma": Bridge(
        "a LoRA tree of gemma",
        gemma.role,
        _hugging_face_name,
        matrices=False,
        unscaled=True,
        new_paths=None,
    ),
    "keras": Bridge(
        "a LoRA file of Keras",
        keras.role,
        _own_name,
        matrices=False,
        unscaled=False,
        new_paths=None,
    ),
}


OF_QWIX: tuple[BridgeName, ...] = ("qwix", "tunix", "maxtext-llama", "maxtext-qwen")


def told(paths: Iterable[TreePath], *, by_tunix: bool) -> list[BridgeName]:
    """The formats that paths of a tree tell; tunix has the names of qwix.

    Args:
      paths: of the arrays.
      by_tunix: the folder is one of tunix.

    >>> told([("layers", "0", "attn", "q_proj", "w_lora_a")], by_tunix=False)
    ['tunix']
    """
    paths = list(paths)
    apart: tuple[BridgeName, ...] = ("nnx", "qwix", "gemma", "keras")
    found: list[BridgeName] = [
        name for name in apart if any(map(BRIDGES[name].role, paths))
    ]
    einsums = any(p[-3:-2] == ("attn",) and p[-1] == "w_lora_a" for p in paths)
    if "qwix" in found and (by_tunix or einsums):
        found[found.index("qwix")] = "tunix"
    return found
