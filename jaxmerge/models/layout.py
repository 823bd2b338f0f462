"""The layouts of Flax's linear layers, as one einsum each.

The update [m, n] of a layer is read with the contracted axes of its kernel, in the
kernel's order, flattened to n, and the other axes flattened to m:

=======================================  =============  =======  =======
layer                                    kernel         n        m
=======================================  =============  =======  =======
``Dense(m)``                             [n, m]         n        m
``DenseGeneral((H, D))``                 [d, H, D]      d        H x D
``DenseGeneral(d, axis=(-2, -1))``       [H, D, d]      H x D    d
``Einsum((H, d, D), "bsd,hdk->bshk")``   [H, d, D]      d        H x D
=======================================  =============  =======  =======
"""

import math
from collections.abc import Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmerge.types import LowRank, RoutedCores, Update
from jaxmerge.updates import dense

KINDS = (nn.Dense, nn.DenseGeneral, nn.Einsum)


class Layer(NamedTuple):
    """A linear layer as ``inputs,kernel->outputs``, one letter for each axis."""

    name: str
    inputs: str
    kernel: str
    outputs: str
    sizes: Mapping[str, int]
    precision: Any

    @property
    def contracted(self) -> str:
        """Axes of the kernel that are flattened to n."""
        return "".join(axis for axis in self.kernel if axis not in self.outputs)

    @property
    def features(self) -> str:
        """Axes of the kernel that are flattened to m."""
        return "".join(axis for axis in self.kernel if axis in self.outputs)

    @property
    def leading(self) -> str:
        """Axes that the layer leaves alone."""
        return "".join(axis for axis in self.outputs if axis in self.inputs)

    def shape(self, axes: str) -> tuple[int, ...]:
        return tuple(self.sizes[axis] for axis in axes)

    def rows(self, inputs: jax.Array) -> jax.Array:
        """The inputs of the layer as rows [..., n]."""
        moved = jnp.einsum(f"{self.inputs}->{self.leading}{self.contracted}", inputs)
        width = math.prod(self.shape(self.contracted))
        return moved.reshape(*self.shape(self.leading), width)

    def unrows(self, rows: jax.Array) -> jax.Array:
        """The outputs of the layer from their rows [..., m]."""
        split = self.leading + self.features
        return jnp.einsum(f"{split}->{self.outputs}", rows.reshape(self.shape(split)))

    def output_rows(self, outputs: jax.Array) -> jax.Array:
        """The outputs of the layer as rows [..., m]; the inverse of `unrows`."""
        moved = jnp.einsum(f"{self.outputs}->{self.leading}{self.features}", outputs)
        width = math.prod(self.shape(self.features))
        return moved.reshape(*self.shape(self.leading), width)

    def to_kernel(self, update: Update) -> jax.Array:
        """An update [m, n] as a dense array with the axes of the kernel."""
        self.check(update)
        split = self.features + self.contracted
        matrix = dense(update).reshape(self.shape(split))
        return jnp.einsum(f"{split}->{self.kernel}", matrix)

    def from_kernel(self, kernel: jax.Array) -> jax.Array:
        """The kernel as one matrix [m, n], the layout of updates."""
        matrix = jnp.einsum(f"{self.kernel}->{self.features}{self.contracted}", kernel)
        return matrix.reshape(math.prod(self.shape(self.features)), -1)

    def check(self, update: Update | RoutedCores) -> None:
        """Refuses an update of another shape than the layer's."""
        update = update.basis if isinstance(update, RoutedCores) else update
        if isinstance(update, LowRank):
            found = (update.b.shape[0], update.a.shape[1])
        else:
            found = update.shape
        axes = (self.features, self.contracted)
        expected = tuple(math.prod(self.shape(part)) for part in axes)
        if found != expected:
            raise ValueError(
                f"{self.name}: the layer is {expected}, the update {found}"
            )


def layer_of(
    name: str,
    module: nn.Dense | nn.DenseGeneral | nn.Einsum,
    inputs: jax.Array,
    einsum_str: str | None = None,
) -> Layer:
    """Describes a bound linear layer and the call that it was given.

    Raises:
      ValueError: a kernel with an axis that is neither an input nor an output, or both
        (batch dimensions): its update is not one matrix.
    """
    if isinstance(module, nn.Einsum):
        equation = einsum_str or module.einsum_str or ""
        shape = tuple(module.shape)
        return einsum_layer(name, inputs, equation, shape, module.precision)
    axis, batch = (-1,), ()
    if isinstance(module, nn.DenseGeneral):
        axis, batch = module.axis, module.batch_dims
    return dense_layer(name, inputs, module.features, axis, batch, module.precision)


def einsum_layer(
    name: str,
    inputs: jax.Array,
    equation: str,
    shape: tuple[int, ...],
    precision: Any,
) -> Layer:
    """A layer of an einsum with a kernel of a shape."""
    equation = _without_dots(equation.replace(" ", ""), inputs.ndim)
    axes, kernel, outputs = equation.replace("->", ",").split(",")
    return _layer(name, (axes, kernel, outputs), inputs.shape + shape, precision)


def dense_layer(
    name: str,
    inputs: jax.Array,
    features: int | Sequence[int],
    axis: int | Sequence[int],
    batch: int | Sequence[int],
    precision: Any,
) -> Layer:
    """A layer that contracts some axes of its inputs, in ascending order."""
    features, ndim = _as_tuple(features), inputs.ndim
    axes = ascii_lowercase[:ndim]
    own = "".join(axes[i] for i in sorted(i % ndim for i in _as_tuple(batch)))
    contracted = "".join(axes[i] for i in sorted(i % ndim for i in _as_tuple(axis)))
    new = ascii_uppercase[: len(features)]
    kept = "".join(a for a in axes if a not in contracted + own)
    kernel = own + contracted + new
    sizes = tuple(inputs.shape[axes.index(a)] for a in own + contracted)
    spec = (axes, kernel, own + kept + new)
    return _layer(name, spec, inputs.shape + sizes + features, precision)


def _layer(
    name: str, spec: tuple[str, str, str], sizes: tuple[int, ...], precision: Any
) -> Layer:
    axes, kernel, outputs = spec
    distinct = all(len(set(part)) == len(part) for part in spec)
    if not distinct or any((a in axes) == (a in outputs) for a in kernel):
        raise ValueError(
            f"{name}: {axes},{kernel}->{outputs} has kernel axes that are not either "
            "inputs or outputs, so its update is not one matrix"
        )
    sizes_of = dict(zip(axes + kernel, sizes, strict=True))
    return Layer(name, axes, kernel, outputs, sizes_of, precision)


def _without_dots(equation: str, ndim: int) -> str:
    operand = equation.split(",")[0].replace("...", "")
    spare = [a for a in ascii_lowercase + ascii_uppercase if a not in equation]
    return equation.replace("...", "".join(spare[: ndim - len(operand)]))


def _as_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
