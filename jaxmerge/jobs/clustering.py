"""Which of many adapters belong together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple, Unpack, get_args

from jaxmerge.folders import Folder
from jaxmerge.jobs.converting import keeping_heads
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import ReadOptions, read_adapters
from jaxmerge.refusals import Option, Refusal

Likeness = Literal["overlap", "cosine"]


class Group(NamedTuple):
    """Adapters that are alike.

    Attributes:
      names: of the adapters.
      paths: their folders.
      within: mean similarity of two of them; None for one alone.
      nearest: names of the group that is most like this one; empty if it is the only.
      between: mean similarity to that group.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    within: float | None
    nearest: tuple[str, ...]
    between: float | None


@dataclass(frozen=True)
class Clustered:
    """Groups of adapters, and how alike any two adapters are.

    Attributes:
      names: of all adapters.
      by: what was compared.
      groups: by their first names.
      similarities: [T][T], in the order of ``names``.
      notes: what reading changed or left out.
    """

    names: tuple[str, ...]
    by: Likeness
    groups: tuple[Group, ...]
    similarities: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "names": list(self.names),
            "by": self.by,
            "groups": [group._asdict() for group in self.groups],
            "similarities": [list(row) for row in self.similarities],
            "notes": list(self.notes),
        }


def cluster(
    folders: Sequence[Folder],
    *,
    groups: int,
    by: Likeness = "overlap",
    names: Sequence[str] | None = None,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Clustered:
    """Sorts adapters into groups of those that are alike, to be merged one by one.

    One merge of many adapters loses more than a merge of few that are alike; the groups
    are what lies between. See `jaxmerge.diagnostics.cluster_adapters`.

    Args:
      folders: PEFT folders, or files of image models.
      groups: how many, from 1 to the number of adapters.
      by: "overlap" of the directions, or "cosine" of the updates.
      names: of the adapters; those of their folders unless given.
      progress: shows how far the job is.
      **read: see `jaxmerge.io.load_peft`.

    Returns:
      `Clustered`.

    Raises:
      Refusal: folders that do not belong together, or another number of groups.
    """
    import numpy as np

    from jaxmerge.diagnostics.clusters import clusters_of, task_similarities

    if by not in get_args(Likeness):
        expected = " or ".join(get_args(Likeness))
        raise Refusal(Option("by", by, quoted=True), f": expected {expected}")
    if not 1 <= groups <= len(folders):
        raise Refusal(
            Option("groups", str(groups)),
            f": {len(folders)} adapters make 1 to {len(folders)} groups",
        )
    with progress("reading", 1) as advance:
        adapters = read_adapters(folders, names, keeping_heads(read))
        advance(1)
    with progress("comparing adapters", 1) as advance:
        similarity = np.asarray(task_similarities(adapters.stacks, by=by))
        advance(1)
    known = adapters.names
    paths = dict(zip(known, map(str, folders), strict=True))
    place = {name: task for task, name in enumerate(known)}
    found = clusters_of(known, similarity, groups=groups)

    def mean(pairs: Sequence[tuple[str, str]]) -> float:
        each = [similarity[place[one], place[other]] for one, other in pairs]
        return float(np.mean(each))

    def described(group: tuple[str, ...]) -> Group:
        inside = list(combinations(group, 2))
        apart = {
            other: mean([(one, two) for one in group for two in other])
            for other in found
            if other != group
        }
        nearest = max(apart, key=apart.__getitem__, default=())
        return Group(
            names=group,
            paths=tuple(paths[name] for name in group),
            within=mean(inside) if inside else None,
            nearest=nearest,
            between=apart.get(nearest),
        )

    return Clustered(
        names=known,
        by=by,
        groups=tuple(map(described, found)),
        similarities=tuple(map(tuple, similarity.tolist())),
        notes=adapters.notes,
    )
