"""How the tensors of a module are laid out, in an adapter and in its base."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """How the tensors of a module are laid out in files.

    Attributes:
      kind: "linear", "embedding", "conv1d", "conv2d" or "conv3d".
      kernel: spatial shape of a convolution; n is inputs x kernel, flattened.
      fan_in_fan_out: the base keeps its weight as [n, m] (GPT-2's Conv1D). It does not
        change b and a. PEFT has one flag for all layers and corrects it layer by layer
        when it loads; None says that the adapters disagree.

    A linear or convolution weight changes by ``(b @ a)`` in its own shape, an embedding
    weight [vocabulary, dimension] by ``(b @ a).T``: there m is the dimension.
    """

    kind: str = "linear"
    kernel: tuple[int, ...] = ()
    fan_in_fan_out: bool | None = False

    def to_tensors(self, b: np.ndarray, a: np.ndarray) -> dict[str, np.ndarray]:
        """PEFT's tensors of factors [m, r] and [r, n], by name below the module."""
        if self.kind == "embedding":
            return {"lora_embedding_A": a, "lora_embedding_B": b}
        if self.kind != "linear":
            a = a.reshape(a.shape[0], -1, *self.kernel)
            b = b.reshape(*b.shape, *(1 for _ in self.kernel))
        return {"lora_A.weight": a, "lora_B.weight": b}

    def weight_shape(self, shape: tuple[int, int], *, turned: bool) -> tuple[int, ...]:
        """The shape of the base weight to which an update of shape (m, n) is added.

        Args:
          shape: (m, n).
          turned: whether a linear layer keeps its weight as [n, m].
        """
        m, n = shape
        if self.kind == "embedding" or turned:
            return (n, m)
        return (m, n // math.prod(self.kernel), *self.kernel)

    def to_weight(self, update: np.ndarray) -> np.ndarray:
        """An update [m, n] in the shape of the base weight to which it is added."""
        if self.kind == "embedding" or self.fan_in_fan_out:
            return update.T
        return update.reshape(update.shape[0], -1, *self.kernel)


def merged_layout(layouts: Sequence[Layout]) -> Layout | None:
    """The layout of a module that several adapters share; None if they differ.

    A difference in ``fan_in_fan_out`` alone is not one of layers, see `Layout`.
    """
    kinds = {(layout.kind, layout.kernel) for layout in layouts}
    flags = {layout.fan_in_fan_out for layout in layouts}
    if len(kinds) > 1:
        return None
    return Layout(*kinds.pop(), flags.pop() if len(flags) == 1 else None)
