"""Everything that is known of some adapters before a merge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxmerge.diagnostics.findings import Findings, find
from jaxmerge.diagnostics.reactions import Reactions
from jaxmerge.diagnostics.spectra import TaskSummary, summarize
from jaxmerge.diagnostics.verdict import Said, of_all, of_reactions
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
    def verdict(self) -> tuple[Said, ...]:
        """What several adapters come to, the most harmful first; empty for one."""
        if self.findings is None:
            return ()
        together = self.findings.tasks
        norms = {t.name: t.norm for t in self.tasks if t.name in together}
        return of_all(self.findings.pairs, norms)

    @property
    def verdict_on_reactions(self) -> tuple[Said, ...]:
        """What the reactions of the losses come to, where there was a model."""
        return () if self.reactions is None else (of_reactions(self.reactions),)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        document: dict[str, Any] = {
            "tasks": [task.to_json() for task in self.tasks],
            "diagnostics": None,
            "notes": list(self.notes),
        }
        if self.findings is not None:
            said = _in_json(self.verdict)
            document["diagnostics"] = {**said, **self.findings.to_json()}
        if self.reactions is not None:
            said = _in_json(self.verdict_on_reactions)
            document["reactions"] = {**said, **self.reactions.to_json()}
        return document


def _in_json(said: Sequence[Said]) -> dict[str, Any]:
    """The statements in one text, and each of them with its harm."""
    each = [entry._asdict() for entry in said]
    return {"verdict": "; ".join(entry.text for entry in said), "statements": each}


def count_modules(stored: Adapters | Mapping[str, Any]) -> int:
    """How many modules `inspect_adapters` works on."""
    return len(stored.stacks if isinstance(stored, Adapters) else stored)


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
