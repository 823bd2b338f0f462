"""Which of many adapters belong together: groups to be merged one by one."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxmerge.diagnostics.overlap import above_random, overlaps
from jaxmerge.diagnostics.ranks import task_gram
from jaxmerge.doors import check_model
from jaxmerge.mapping import map_modules
from jaxmerge.refusals import Refusal
from jaxmerge.types import AdapterStack

_DIGITS = 5  # similarities that agree so far are equal, whatever the order of the tasks


def task_similarities(
    stacks: Mapping[str, AdapterStack],
    *,
    by: Literal["overlap", "cosine"] = "overlap",
) -> np.ndarray:
    """How alike the adapters of a model are, pair by pair, over all modules.

    * overlap: mean of `above_random` of the overlaps of B and of A, over the modules
      that both tasks adapt (see `overlaps`): 0 for random subspaces, 1 for equal ones.
      Neither signs nor sizes matter.
    * cosine: of the updates of all modules as one vector, ``sum <D_i, D_j>`` over the
      product of the norms. Adapters of different initial A have cosines near 0.

    Args:
      stacks: module -> its T adapters.
      by: what is compared.

    Returns:
      [T, T], symmetric; 0 where there is nothing to compare.

    Cost: O((m + n) K^2) for each module; no update is formed.

    >>> from jaxmerge.stacks import stack_adapters
    >>> x, y = ([[1.0], [0.0]], [[2.0]]), ([[1.0], [1.0]], [[1.0]])
    >>> stacks = {"q": stack_adapters([x, x, y])}
    >>> print(task_similarities(stacks, by="cosine").round(3))
    [[1.    1.    0.707]
     [1.    1.    0.707]
     [0.707 0.707 1.   ]]
    """
    check_model(task_similarities, stacks)
    tasks = {len(stack.ranks) for stack in stacks.values()}
    if len(tasks) != 1:
        raise Refusal(
            "task_similarities takes modules of the same tasks; got numbers of tasks "
            f"{sorted(tasks)}"
        )
    if by == "cosine":
        grams = map_modules(task_gram, stacks).values()
        gram = np.sum([np.asarray(found, np.float64) for found in grams], axis=0)
        norms = np.sqrt(np.maximum(np.diagonal(gram), 0))
        return _quotient(gram, np.outer(norms, norms))
    if by != "overlap":
        raise Refusal(f"task_similarities: by is 'overlap' or 'cosine', not {by!r}")
    total = count = np.zeros((max(tasks), max(tasks)))
    for found in map_modules(overlaps, stacks).values():
        both = np.asarray(found.random_b) > 0
        of_b = above_random(found.b, found.random_b)
        of_a = above_random(found.a, found.random_a)
        mean = (np.asarray(of_b, np.float64) + np.asarray(of_a, np.float64)) / 2
        total, count = total + mean, count + both
    return _quotient(total, count)


def cluster_adapters(
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    *,
    groups: int,
    by: Literal["overlap", "cosine"] = "overlap",
) -> tuple[tuple[str, ...], ...]:
    """Sorts many adapters into groups of those that are alike, to be merged apart.

    Average linkage: every task begins alone, and the two groups whose tasks are most
    alike, in the mean over all pairs of one and the other, become one, until as many
    groups are left as are wanted.

    Args:
      tasks: names of the T tasks.
      stacks: module -> its T adapters.
      groups: how many, from 1 to T.
      by: what is compared, see `task_similarities`.

    Returns:
      The groups, each in the order of its names, and by their first names. The order of
      the tasks does not matter: of pairs that are equally alike, to 5 decimals, the
      first by name is taken.

    Raises:
      Refusal: names that are not those of T tasks, another number of groups, or
        adapters that are not finite.

    Cost: that of `task_similarities`, and O(T^3) for the groups.

    Clusters of adapters that are merged one by one are an idea of TC-LoRA (arXiv
    2508.03999), which clusters training texts; here no data are needed.

    >>> from jaxmerge.stacks import stack_adapters
    >>> x, y = ([[1.0], [0.0]], [[2.0, 0.0]]), ([[0.0], [1.0]], [[0.0, 1.0]])
    >>> stacks = {"q": stack_adapters([x, y, x])}
    >>> cluster_adapters(["cars", "birds", "bikes"], stacks, groups=2)
    (('bikes', 'cars'), ('birds',))
    """
    return clusters_of(tasks, task_similarities(stacks, by=by), groups=groups)


def clusters_of(
    tasks: Sequence[str], similarity: np.ndarray, *, groups: int
) -> tuple[tuple[str, ...], ...]:
    """`cluster_adapters` of similarities [T, T] that are known."""
    count = len(similarity)
    if len(tasks) != count or len(set(tasks)) != count:
        raise Refusal(
            f"cluster_adapters takes a name of its own for each of the {count} tasks; "
            f"got {list(tasks)}"
        )
    if not 1 <= groups <= count:
        raise Refusal(
            f"cluster_adapters: {count} adapters make 1 to {count} groups, not {groups}"
        )
    if not np.all(np.isfinite(similarity)):
        own = zip(tasks, np.diagonal(similarity), strict=True)
        broken = [name for name, found in own if not np.isfinite(found)]
        raise Refusal(f"cluster_adapters: adapters are not finite: {broken}")
    order = sorted(range(count), key=lambda task: tasks[task])
    found = average_linkage(similarity[np.ix_(order, order)], groups)
    return tuple(tuple(tasks[order[place]] for place in group) for group in found)


def average_linkage(similarity: np.ndarray, groups: int) -> list[list[int]]:
    """Groups of the rows of a symmetric [T, T], by average linkage.

    Of pairs of groups that are equally alike the first is taken. Groups, and rows in
    them, are in ascending order.

    >>> average_linkage(np.array([[1, 0, 0.5], [0, 1, 0.4], [0.5, 0.4, 1]]), 2)
    [[0, 2], [1]]
    """
    members = [[row] for row in range(len(similarity))]
    sums = np.array(similarity, np.float64)  # over the pairs of two groups
    while len(members) > groups:
        sizes = np.array([len(group) for group in members])
        linkage = np.round(sums / np.outer(sizes, sizes), _DIGITS)
        linkage[np.tril_indices(len(members))] = -np.inf
        one, other = divmod(int(np.argmax(linkage)), len(members))
        sums[one] += sums[other]
        sums[:, one] += sums[:, other]
        sums = np.delete(np.delete(sums, other, axis=0), other, axis=1)
        members[one] = sorted(members[one] + members.pop(other))
    return members


def _quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``x / y``, and x, which is 0 or not finite, where y is 0."""
    return x / np.where(y == 0, 1, y)
