"""Models larger than memory: modules whose values are made when they are asked for.

A `Streamed` stands wherever a mapping from modules does. Mapped over modules it gives
another one (`jaxmerge.map_modules`), so that a merge of adapters that are read module
by module is itself made module by module, while it is written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeVar, overload

Tree = TypeVar("Tree")


class Streamed(Mapping[str, Tree]):
    """Trees of arrays by module, made a group of modules at a time and not kept.

    Whoever goes through it in its order makes everything once and holds one group.
    Who asks for a module again, after one of another group, makes its group again.

    Args:
      groups: names of the modules that are made together, in order.
      make: from the names of some modules to their trees.
      describe: gives every module's tree with a `jax.ShapeDtypeStruct` in the place of
        each array, without making any; called when it is first needed.
    """

    def __init__(
        self,
        groups: Iterable[Sequence[str]],
        make: Callable[[Sequence[str]], Mapping[str, Tree]],
        describe: Callable[[], Mapping[str, Tree]],
    ):
        self._make, self._describe = make, describe
        self._group_of = {name: names for names in map(tuple, groups) for name in names}
        self._held: Mapping[str, Tree] = {}

    @cached_property
    def shapes(self) -> Mapping[str, Tree]:
        """Shapes and dtypes of all modules."""
        return self._describe()

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of the modules that are made together."""
        return tuple(dict.fromkeys(self._group_of.values()))

    def regrouped(self, groups: Iterable[Sequence[str]]) -> "Streamed[Tree]":
        """The same modules, others of them made together."""
        return Streamed(groups, self._make, lambda: self.shapes)

    def __getitem__(self, name: str) -> Tree:
        if name not in self._held:
            names = self._group_of[name]
            self._held = {}  # so that two groups are never held
            self._held = self._make(names)
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._group_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._group_of)

    def __len__(self) -> int:
        return len(self._group_of)


def described(values: Mapping[str, Tree]) -> Mapping[str, Tree]:
    """The trees of all modules as far as shapes and dtypes go; nothing is made."""
    return values.shapes if isinstance(values, Streamed) else values


@overload
def each(
    values: Streamed[Tree], change: Callable[[str, Tree], Tree]
) -> Streamed[Tree]: ...


@overload
def each(
    values: Mapping[str, Tree], change: Callable[[str, Tree], Tree]
) -> dict[str, Tree]: ...


def each(
    values: Mapping[str, Tree], change: Callable[[str, Tree], Tree]
) -> dict[str, Tree] | Streamed[Tree]:
    """The values of all modules after a change that leaves shapes and dtypes.

    >>> each({"q": 1, "k": 2}, lambda name, value: 10 * value)
    {'q': 10, 'k': 20}
    """
    if not isinstance(values, Streamed):
        return {name: change(name, value) for name, value in values.items()}
    return Streamed(
        values.groups,
        lambda names: {name: change(name, values[name]) for name in names},
        lambda: values.shapes,
    )


def in_groups(sizes: Mapping[str, int], limit: float) -> list[tuple[str, ...]]:
    """Neighbouring modules whose sizes add up to at most a limit; at least one each.

    >>> in_groups({"q": 3, "k": 4, "v": 9, "o": 1}, 8)
    [('q', 'k'), ('v',), ('o',)]
    """
    groups: list[list[str]] = []
    left = 0.0
    for name, size in sizes.items():
        left -= size
        if left < 0 or not groups:
            groups.append([])
            left = limit - size
        groups[-1].append(name)
    return [tuple(names) for names in groups]
