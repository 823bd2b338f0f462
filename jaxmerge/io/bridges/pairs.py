"""Two arrays of a tree that are the factors of a layer, or of layers in a stack.

Libraries of JAX compute ``x @ a @ b``: a is ``[*inputs, r]`` and b ``[r, *outputs]``,
with as many axes of inputs and outputs as the layer contracts and makes. Under
``nn.scan`` or ``nnx.vmap`` both have one axis more, of L layers. With their axes
flattened in the order of the tree, each layer is the update ``B A`` of the matrices
``A = a.T [r, n]`` and ``B = b.T [m, r]``.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.options import ScanAxis
from jaxmerge.io.tensors import Described
from jaxmerge.refusals import Option

TreePath = tuple[str, ...]
Role = tuple[TreePath, Literal["a", "b"]]
_STACKS = {"layers", "layer", "blocks", "block", "h"}  # what models call their stacks


class Heads(NamedTuple):
    """How the heads of a layer's outputs lie in a tree, where Hugging Face differs.

    Attributes:
      alternate: features of the two halves of a head come by turns, as
        rotary embeddings pair them.
      divided: b is divided by the square root of the size of a head.
    """

    alternate: bool = False
    divided: bool = False

    def plain(self, b: np.ndarray, size: int) -> np.ndarray:
        """A factor [r, m] in the order and scale of Hugging Face, heads of a size.

        >>> Heads(alternate=True, divided=True).plain(np.arange(4.0)[None], 4)
        array([[0., 4., 2., 6.]], dtype=float32)
        """
        if not any(self):
            return b
        b = b.astype(np.float32) * np.float32(math.sqrt(size) if self.divided else 1)
        if self.alternate:
            b = b.reshape(len(b), -1, size // 2, 2).swapaxes(2, 3)
        return b.reshape(len(b), -1)

    def turned(self, b: np.ndarray, size: int) -> np.ndarray:
        """The inverse of `plain`."""
        if not any(self):
            return b
        b = b / np.float32(math.sqrt(size) if self.divided else 1)
        if self.alternate:
            b = b.reshape(len(b), -1, 2, size // 2).swapaxes(2, 3)
        return b.reshape(len(b), -1)


AS_THERE = Heads()


@dataclass(frozen=True)
class Pair:
    """The factors of a layer, or of L stacked ones.

    Attributes:
      module: the module in the tree.
      a: where a is in the tree, and ``b`` where b is.
      inputs: shape of one layer's inputs, so that its a is ``[*inputs, rank]``.
      outputs: shape of its outputs, so that its b is ``[rank, *outputs]``.
      axis: axis of the layers in both arrays; None for one layer.
      layers: names of the modules of each layer. Several modules of one layer share a,
        and the first axis of its outputs counts them.
      heads: how the outputs lie in b.
    """

    module: TreePath
    a: TreePath
    b: TreePath
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rank: int
    axis: int | None
    layers: tuple[tuple[str, ...], ...]
    heads: Heads = AS_THERE

    def factor_a(self, a: np.ndarray, layer: int) -> np.ndarray:
        """A [r, n] of a layer, from the array of the tree."""
        return self._layer(a, layer).reshape(-1, self.rank).T

    def factor_b(self, b: np.ndarray, layer: int, part: int) -> np.ndarray:
        """B [m, r] of one module of a layer, from the array of the tree."""
        parts = len(self.layers[layer])
        found = self._layer(b, layer).reshape(self.rank, parts, -1)[:, part]
        return self.heads.plain(found, self.outputs[-1]).T

    def arrays(
        self, factors: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The arrays a and b of the tree, from B [m, r] and A [r, n] of every layer."""
        a = [found.T.reshape(*self.inputs, -1) for _, found in factors]
        size = self.outputs[-1]
        b = [
            self.heads.turned(found.T, size).reshape(-1, *self.outputs)
            for found, _ in factors
        ]
        if self.axis is None:
            return a[0], b[0]
        return np.stack(a, self.axis), np.stack(b, self.axis)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of one module."""
        parts = len(self.layers[0])
        return math.prod(self.outputs) // parts, math.prod(self.inputs)

    def _layer(self, array: np.ndarray, layer: int) -> np.ndarray:
        return array if self.axis is None else np.take(array, layer, self.axis)


def find_pairs(
    infos: Mapping[TreePath, Described],
    role: Callable[[TreePath], Role | None],
    names: Callable[[TreePath], tuple[str, ...]],
    where: object,
    *,
    matrices: bool,
    scan_axis: ScanAxis | None,
    heads: Callable[[TreePath], Heads] | None = None,
) -> tuple[Pair, ...]:
    """The pairs of a tree; AdapterError for what cannot be told apart.

    Args:
      infos: shape and dtype of every array.
      role: of an array, by its path: its module and which factor it is.
      names: of the modules that a module of the tree stands for.
      where: the tree, for messages.
      matrices: a layer has one axis of inputs and one of outputs.
      scan_axis: axis of stacked layers, where shapes leave it open.
      heads: how the outputs of a module lie in b; as in Hugging Face unless given.
    """
    modules: dict[TreePath, dict[str, TreePath]] = {}
    for path in infos:
        found = role(path)
        if found is None:
            continue
        parts = modules.setdefault(found[0], {})
        if found[1] in parts:
            both = listing(map("/".join, (parts[found[1]], path)))
            raise AdapterError(f"{where}: {both} are factors of one module")
        parts[found[1]] = path
    pairs = []
    for module, parts in sorted(modules.items()):
        shown = f"{where}: module {'/'.join(module)!r}"
        if set(parts) != {"a", "b"}:
            raise AdapterError(
                f"{shown}: only one of its two factors is there; save both"
            )
        a, b = infos[parts["a"]].shape, infos[parts["b"]].shape
        axis = _axis(a, b, shown, matrices=matrices, scan_axis=scan_axis)
        one_a, one_b = (_without(shape, axis) for shape in (a, b))
        layers = [module] if axis is None else _numbered(module, a[axis])
        named = tuple(names(layer) for layer in layers)
        counted = len(named[0])
        if counted > 1 and (len(one_b) < 3 or one_b[1] != counted):
            raise AdapterError(
                f"{shown}: stands for {listing(named[0])}, but its b {b} does not "
                f"have {counted} of them"
            )
        lie = AS_THERE if heads is None else heads(module)
        if any(lie) and (len(one_b) != 3 or one_b[-1] % 2):
            raise AdapterError(
                f"{shown}: its b {b} has no axis of heads before that of their "
                "features, so that their size is unknown"
            )
        pairs.append(
            Pair(
                module=module,
                a=parts["a"],
                b=parts["b"],
                inputs=one_a[:-1],
                outputs=one_b[1:],
                rank=one_b[0],
                axis=axis,
                layers=named,
                heads=lie,
            )
        )
    _check_names([name for p in pairs for layer in p.layers for name in layer], where)
    return tuple(pairs)


def _check_names(names: Collection[str], where: object) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise AdapterError(f"{where}: two modules of the tree are called {name!r}")
        seen.add(name)


def _axis(
    a: tuple[int, ...],
    b: tuple[int, ...],
    where: str,
    *,
    matrices: bool,
    scan_axis: ScanAxis | None,
) -> int | None:
    """The axis of stacked layers that two shapes tell, None for one layer."""
    readings = list(_readings(a, b, matrices=matrices))
    if not readings or 0 in (*a, *b):
        raise AdapterError(f"{where}: a {a} and b {b} do not fit each other")
    chosen = None if scan_axis == "none" else scan_axis
    if scan_axis is not None and len(readings) > 1 and chosen in readings:
        return chosen
    if len(readings) > 1:
        raise AdapterError(
            f"{where}: a {a} and b {b} may be the factors of one layer or of a stack "
            "of layers; if layers are stacked, pass ",
            Option("scan_axis", "<axis>"),
            " with the axis of the stack, else ",
            Option("scan_axis", "none", quoted=True),
        )
    return readings[0]


def _readings(
    a: tuple[int, ...], b: tuple[int, ...], *, matrices: bool
) -> Iterator[int | None]:
    """Every way in which two shapes can be read: None or the axis of a stack."""
    if min(len(a), len(b)) < 2:
        return
    stacked = min(len(a), len(b)) > 2
    if a[-1] == b[0] and not (matrices and len(a) + len(b) > 4):
        yield None
    if matrices and (len(a), len(b)) != (3, 3):
        return
    if stacked and a[0] == b[0] and a[-1] == b[1]:
        yield 0
    if stacked and a[1] == b[1] and a[-1] == b[0]:
        yield 1


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], *shape[axis + 1 :])


def _numbered(module: TreePath, count: int) -> list[TreePath]:
    """Names of stacked layers: the number behind the name of the stack, or at the end.

    >>> _numbered(("decoder", "layers", "query"), 2)[1]
    ('decoder', 'layers', '1', 'query')
    """
    places = [i + 1 for i, piece in enumerate(module) if piece in _STACKS]
    place = places[0] if len(places) == 1 else len(module)
    return [(*module[:place], str(i), *module[place:]) for i in range(count)]
