"""Whether statistics of inputs are those of some adapters."""

from collections.abc import Mapping

from jaxmerge.stats.moments import Statistics
from jaxmerge.streamed import Streamed, described
from jaxmerge.types import AdapterStack


def check_statistics(
    stacks: Mapping[str, AdapterStack], stats: Mapping[str, Statistics]
) -> None:
    """Refuses statistics that lack a module of the adapters or do not fit it.

    Whether streamed ones fit is for whoever makes them to check: nothing is made here.
    """
    for name, stack in described(stacks).items():
        if name not in stats:
            raise ValueError(f"no statistics of module {name!r}")
        if not isinstance(stats, Streamed):
            check_fits(name, stack, stats[name])


def check_fits(name: str, stack: AdapterStack, stats: Statistics) -> None:
    """Refuses stacked statistics of other tasks or inputs than a module has."""
    expected = (len(stack.ranks), stack.a.shape[-1])
    if stats.mean.shape != expected:
        raise ValueError(
            f"{name}: expected statistics of {expected[0]} tasks and {expected[1]} "
            f"input features, got {stats.mean.shape}; stack those of all tasks in the "
            "order of the adapters"
        )
