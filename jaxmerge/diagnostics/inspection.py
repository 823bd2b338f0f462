"""Everything that is known of some adapters before a merge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxmerge.diagnostics import verdict
from jaxmerge.diagnostics.findings import Findings, find
from jaxmerge.diagnostics.reactions import Reactions
from jaxmerge.diagnostics.spectra import TaskSummary, summarize
from jaxmerge.io import Adapters
from jaxmerge.types import AdapterStack


@dataclass(frozen=True)
class Inspection:
    """What adapters are, and what several of them have in common.

    Attributes:
      tasks: each adapter by itself, or the merged updates of a checkpoint.
      findings: of several adapters together; None for one, or for merged updates.
      reactions: of the losses, where there was a model.
      notes: what reading the adapters changed or left out.
    """

    tasks: tuple[TaskSummary, ...]
    findings: Findings | None = None
    reactions: Reactions | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdicts(self) -> tuple[str, ...]:
        """A line about the adapters, and one about the reactions."""
        said = []
        if self.findings is not None:
            said.append(verdict.of_all(self.findings.pairs))
        if self.reactions is not None:
            said.append(verdict.of_reactions(self.reactions))
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        document: dict[str, Any] = {
            "tasks": [task.to_json() for task in self.tasks],
            "diagnostics": None,
            "notes": list(self.notes),
        }
        if self.findings is not None:
            said = verdict.of_all(self.findings.pairs)
            document["diagnostics"] = {"verdict": said, **self.findings.to_json()}
        if self.reactions is not None:
            said = verdict.of_reactions(self.reactions)
            document["reactions"] = {"verdict": said, **self.reactions.to_json()}
        return document


def inspect_adapters(
    stored: Adapters | Mapping[str, Any], *, report: Callable[[], None] | None = None
) -> Inspection:
    """Norms and spectra, and diagnostics where there are several adapters.

    Args:
      stored: adapters, or what an orbax checkpoint holds: module -> stack or update.
      report: called after every module that was compared.
    """
    if isinstance(stored, Adapters):
        names, stacks, notes = stored.names, stored.stacks, stored.notes
    else:
        notes = ()
        stacks = {m: v for m, v in stored.items() if isinstance(v, AdapterStack)}
        count = max((len(stack.ranks) for stack in stacks.values()), default=0)
        names = tuple(f"task {task}" for task in range(count))
    if len(names) < 2:
        return Inspection(tasks=tuple(summarize(stored)), notes=notes)
    found = find(names, stacks, report=report)
    spectra = {module: arrays.spectra for module, arrays in found.arrays.items()}
    return Inspection(tuple(summarize(stored, spectra)), found, notes=notes)
