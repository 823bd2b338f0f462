"""Adapters in terms of components that they share, with all that restores a folder."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxmerge.io.adapters import Adapters, Source
from jaxmerge.mapping import map_modules
from jaxmerge.mergers.reversible import (
    ReversibleMerge,
    compress_adapters,
    restore_adapter,
)
from jaxmerge.refusals import Refusal
from jaxmerge.stacks import stack_adapters
from jaxmerge.types import AdapterStack, LowRank
from jaxmerge.updates import truncate


@dataclass(frozen=True, eq=False)
class CompressedAdapters:
    """T adapters of one base model, compressed module by module.

    `jaxmerge.io.save_orbax` saves them, and `load_orbax` reads them back.

    Attributes:
      merges: module -> its adapters in terms of components.
      ranks: module -> the rank of each adapter as it was, 0 where it is absent.
      rest: names, layouts, biases, saved modules, sources and options as they were,
        without any stack.
    """

    merges: Mapping[str, ReversibleMerge]
    ranks: Mapping[str, tuple[int, ...]]
    rest: Adapters

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the T tasks."""
        return self.rest.names

    @property
    def exact(self) -> bool:
        """Whether every adapter comes back, up to rounding."""
        return all(map(self._exact, self.merges))

    def _exact(self, module: str) -> bool:
        (basis, components, _), ranks = self.merges[module], self.ranks[module]
        (m, p), (q, n) = basis.b.shape, basis.a.shape
        wide = p >= min(sum(ranks), m) and q >= min(sum(ranks), n)
        present = sum(rank > 0 for rank in ranks)
        return wide and len(components) >= min(present, p * q)

    def restored(self, name: str | None = None) -> Adapters:
        """The adapters, or the one of a name, as `jaxmerge.io.load_peft` gives them.

        Where nothing was lost they have the ranks that they had, otherwise all
        directions of what is left.

        Raises:
          Refusal: there is no adapter of this name.
        """
        if name is not None and name not in self.names:
            raise Refusal(
                f"no adapter {name!r} among the compressed ones; there are "
                f"{', '.join(self.names)}"
            )
        tasks = [t for t, known in enumerate(self.names) if name in (None, known)]
        stacks = {
            module: self._stack(module, tasks)
            for module, ranks in self.ranks.items()
            if any(ranks[t] for t in tasks)
        }
        rest = self.rest
        return replace(
            rest,
            stacks=stacks,
            names=tuple(rest.names[t] for t in tasks),
            layouts={module: rest.layouts[module] for module in stacks},
            biases={
                m: x[np.array(tasks)] for m, x in rest.biases.items() if m in stacks
            },
            heads=tuple(rest.heads[t] for t in tasks),
            sources=tuple(self._source(t) for t in tasks),
        )

    def _source(self, task: int) -> Source:
        source = self.rest.sources[task]
        if self.exact:
            return source
        note = "was compressed with loss, so that it is nearly what it was"
        return replace(source, notes=(*source.notes, note))

    def _stack(self, module: str, tasks: list[int]) -> AdapterStack:
        merge, ranks = self.merges[module], self.ranks[module]
        exact = self._exact(module)
        pairs = [
            _restored(merge, np.int32(t), ranks[t] if exact else None)
            if ranks[t]
            else None
            for t in tasks
        ]
        return stack_adapters(pairs, dtype=merge.components.dtype, name=module)

    def described(self) -> Adapters:
        """The adapters as they were, with zeros in the place of their factors."""
        stacks = {}
        for module, ranks in self.ranks.items():
            basis, zero = self.merges[module].basis, np.float32(0)
            shapes = (len(ranks), max(ranks), basis.a.shape[1])
            other = (len(ranks), basis.b.shape[0], max(ranks))
            a, b = (np.broadcast_to(zero, shape) for shape in (shapes, other))
            stacks[module] = AdapterStack(a=a, b=b, ranks=ranks)  # pyright: ignore[reportArgumentType]
        return replace(self.rest, stacks=stacks)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Module and what in it does not fit the rest."""
        for module, merge in self.merges.items():
            ranks = self.ranks[module]
            shapes = [tuple(np.shape(x)) for x in jax.tree.leaves(merge)]
            if len(ranks) != len(self.names) or not any(ranks):
                yield module, f"ranks {list(ranks)} of {len(self.names)} adapters"
            elif not _fit(shapes, len(ranks)):
                yield module, f"arrays {shapes} do not fit each other"
            elif not all(np.isfinite(x).all() for x in jax.tree.leaves(merge)):
                yield module, "holds NaN or infinite values"
            elif merge.coefficients[np.array(ranks) == 0].any():
                yield module, f"ranks {list(ranks)}, but coefficients where one is 0"


def _fit(shapes: list[tuple[int, ...]], tasks: int) -> bool:
    """Whether U, V^T, components and coefficients are of one module."""
    b, a, components, coefficients = shapes
    if [len(shape) for shape in shapes] != [2, 2, 3, 2] or not components[0]:
        return False
    return components[1:] == (b[1], a[0]) and coefficients == (tasks, components[0])


def compressed_adapters(
    adapters: Adapters,
    *,
    components: int,
    rank: int | None = None,
    report: Callable[[], None] | None = None,
) -> CompressedAdapters:
    """Compresses adapters that were read, see `jaxmerge.compress_adapters`.

    Args:
      adapters: in memory.
      components: p.
      rank: width of the common bases; None for all directions.
      report: called after every module.
    """
    compress = partial(compress_adapters, components=components, rank=rank)
    merges = {}
    for module, stack in adapters.stacks.items():
        merges |= map_modules(compress, {module: stack})
        if report is not None:
            report()
    ranks = {module: stack.ranks for module, stack in adapters.stacks.items()}
    return CompressedAdapters(merges, ranks, replace(adapters, stacks={}))


@partial(jax.jit, static_argnums=2)
def _restored(merge: ReversibleMerge, task: Any, rank: int | None) -> LowRank:
    """The update of a task, at a rank that it is known to have."""
    update = restore_adapter(merge, task)
    return update if rank is None else truncate(update, rank=rank)
