"""The functions of `jaxmerge.io` for trees in memory, two for each library.

All of them take any pytree whose leaves are arrays: an `nnx.State`, the params of a
linen model, dicts and lists, the restored tree of a checkpoint. Arrays besides the
factors are left out on the way in, and on the way back are those of ``like``.
"""

from typing import TYPE_CHECKING, Any, Literal, get_args

from jaxmerge.io.bridges.trees_in_memory import Updates, from_trees, to_tree
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.errors import given as shown
from jaxmerge.io.options import Alpha, BridgeName, ScanAxis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxmerge.io.adapters import Adapters

Model = Literal["llama", "qwen"]  # of MaxText


def from_nnx(
    *states: Any,
    alpha: Alpha | None = None,
    names: "Sequence[str] | None" = None,
    scan_axis: ScanAxis | None = None,
) -> "Adapters":
    """Adapters of flax ``nnx.LoRA`` and ``nnx.LoRALinear``, ``alpha / r * a @ b``.

    Args:
      *states: a tree for each adapter, such as ``nnx.state(model, nnx.LoRAParam)``.
      alpha: has to be given, as no tree holds it: a number as in the training, "rank"
        for a scale of 1, which is what flax itself computes, or a table of these by
        patterns of names (the first that fits the end of a module's name counts).
      names: of the adapters; by default "tree-1" and so on.
      scan_axis: axis of layers that are stacked (0 or 1, or "none"), where shapes leave
        it open.

    Returns:
      `Adapters`, whose modules have the names of the tree, joined by dots.

    Raises:
      AdapterError: what cannot be read exactly, or does not fit the other trees.

    >>> import jax.numpy as jnp
    >>> state = {"fc": {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.ones((2, 3))}}
    >>> adapters = from_nnx(state, alpha=8)
    >>> adapters.stacks["fc"].b.shape, adapters.sources[0].scales
    ((1, 3, 2), {'fc': 4.0})
    """
    given = {"alpha": alpha, "names": names, "scan_axis": scan_axis}
    return from_trees(states, "nnx", **given)


def to_nnx(
    updates: "Updates | Adapters",
    *,
    like: Any = None,
    alpha: Alpha = "rank",
    rank: int | None = None,
    scan_axis: ScanAxis | None = None,
) -> Any:
    """A tree of flax ``nnx.LoRA`` that holds an update of every module.

    Args:
      updates: module -> `LowRank`, or one adapter.
      like: the tree of the model, whose other leaves and dtypes are kept; modules of it
        that have no update become zero. Without it the tree is made of dicts, by the
        names of the modules.
      alpha: with which the model multiplies ``a @ b / r``, as in `from_nnx`; "rank" is
        what flax itself computes.
      rank: of every module. By default modules that have one rank in ``like`` keep one,
        the same or, where an update needs more, a larger one.
      scan_axis: of ``like``, as in `from_nnx`.

    Returns:
      A tree like ``like``: ``nnx.update(model, tree)`` puts it into the model.

    Raises:
      AdapterError: an update that has no place there, or needs a larger rank.

    >>> import jax.numpy as jnp
    >>> state = {"fc": {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.ones((2, 3))}}
    >>> tree = to_nnx(from_nnx(state, alpha=8), like=state)
    >>> float(tree["fc"]["lora_b"][0, 0])
    4.0
    """
    given = {"like": like, "alpha": alpha, "rank": rank, "scan_axis": scan_axis}
    return to_tree(updates, "nnx", **given)


def from_qwix(
    *trees: Any,
    alpha: Alpha | None = None,
    names: "Sequence[str] | None" = None,
    scan_axis: ScanAxis | None = None,
) -> "Adapters":
    """Adapters of qwix ``LoraProvider``: ``<weight>_lora_a`` beside the weight.

    Arguments, result and refusals are those of `from_nnx`. Where rules have different
    alphas, their patterns make the table: ``{"layers_.*": 16, "up|conv": 8}``. Factors
    of einsums and convolutions become matrices in the order of their own axes.
    """
    given = {"alpha": alpha, "names": names, "scan_axis": scan_axis}
    return from_trees(trees, "qwix", **given)


def to_qwix(
    updates: "Updates | Adapters",
    *,
    like: Any = None,
    alpha: Alpha | None = None,
    rank: int | None = None,
    scan_axis: ScanAxis | None = None,
) -> Any:
    """A tree of qwix that holds an update of every module, see `to_nnx`.

    The rule of the model has to have this alpha, and the ranks of the arrays.
    """
    given = {"like": like, "alpha": alpha, "rank": rank, "scan_axis": scan_axis}
    return to_tree(updates, "qwix", **given)


def from_tunix(
    *trees: Any,
    alpha: Alpha | None = None,
    names: "Sequence[str] | None" = None,
    scan_axis: ScanAxis | None = None,
) -> "Adapters":
    """Adapters of tunix, as `from_qwix`, under the names of Hugging Face.

    Keys and values of one einsum are two modules that share A.
    """
    given = {"alpha": alpha, "names": names, "scan_axis": scan_axis}
    return from_trees(trees, "tunix", **given)


def to_tunix(
    updates: "Updates | Adapters",
    *,
    like: Any,
    alpha: Alpha | None = None,
    rank: int | None = None,
    scan_axis: ScanAxis | None = None,
) -> Any:
    """A tree of tunix that holds an update of every module, see `to_qwix`."""
    given = {"like": like, "alpha": alpha, "rank": rank, "scan_axis": scan_axis}
    return to_tree(updates, "tunix", **given)


def from_maxtext(
    *trees: Any,
    model: "Model" = "llama",
    alpha: Alpha | None = None,
    names: "Sequence[str] | None" = None,
    scan_axis: ScanAxis | None = None,
) -> "Adapters":
    """Adapters of MaxText, as `from_qwix`, under the names of Hugging Face.

    Args:
      *trees: a tree for each adapter.
      model: "llama" for models with the rotary embedding of Llama 3.1, whose queries
        and keys MaxText keeps in another order, and queries in another scale: their b
        is brought to those of Hugging Face. "qwen" for Qwen 2.5 and 3.
      alpha: see `from_nnx`, and so ``names``.
      scan_axis: axis of stacked layers, 1 unless the config of MaxText says otherwise.
    """
    given = {"alpha": alpha, "names": names, "scan_axis": scan_axis}
    return from_trees(trees, _maxtext(model), **given)


def to_maxtext(
    updates: "Updates | Adapters",
    *,
    like: Any,
    model: "Model" = "llama",
    alpha: Alpha | None = None,
    rank: int | None = None,
    scan_axis: ScanAxis | None = None,
) -> Any:
    """A tree of MaxText that holds an update of every module, see `to_qwix`."""
    given = {"like": like, "alpha": alpha, "rank": rank, "scan_axis": scan_axis}
    return to_tree(updates, _maxtext(model), **given)


def _maxtext(model: "Model") -> BridgeName:
    if model not in get_args(Model):
        raise AdapterError(shown("model", model), ": expected 'llama' or 'qwen'")
    return "maxtext-llama" if model == "llama" else "maxtext-qwen"


def from_gemma(
    *trees: Any,
    alpha: Alpha | None = None,
    names: "Sequence[str] | None" = None,
    scan_axis: ScanAxis | None = None,
) -> "Adapters":
    """Adapters of the library gemma, under the names of Hugging Face, see `from_nnx`.

    The library multiplies by nothing: ``alpha="rank"``. Keys and values of one einsum
    are two modules that share A, as are gate and up projection.
    """
    given = {"alpha": alpha, "names": names, "scan_axis": scan_axis}
    return from_trees(trees, "gemma", **given)


def to_gemma(
    updates: "Updates | Adapters",
    *,
    like: Any,
    alpha: Alpha = "rank",
    rank: int | None = None,
    scan_axis: ScanAxis | None = None,
) -> Any:
    """A tree of gemma that holds an update of every module, see `to_nnx`."""
    given = {"like": like, "alpha": alpha, "rank": rank, "scan_axis": scan_axis}
    return to_tree(updates, "gemma", **given)
