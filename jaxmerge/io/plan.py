"""What a merge would be, from headers alone: no tensor is read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxmerge.folders import Folder
from jaxmerge.io.factors import common_dtype, output_dtype
from jaxmerge.io.opening import OpenAdapter, open_adapters
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.serving import VLLM_RANKS, vllm_max_lora_rank
from jaxmerge.io.survey import Conflict, conflicts
from jaxmerge.refusals import Message, Option

_FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class PlannedAdapter:
    """One adapter of a plan, as far as its headers tell.

    Attributes:
      ranks: the different ranks of its modules, ascending.
      scales: the different effective scales (what ``B A`` is multiplied with).
      heads: names of its saved tensors besides LoRA.
      zero_modules: modules whose update is exactly zero; None if no tensor was read.
      kind: of its file: "peft", or of an image model "diffusers", "kohya", "numbered".
    """

    name: str
    path: str
    peft_type: str
    base_model: str | None
    revision: str | None
    task_type: str | None
    dtype: str
    weight_file: str
    modules: int
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    heads: tuple[str, ...]
    zero_modules: tuple[str, ...] | None
    kind: str = "peft"


@dataclass(frozen=True)
class PlannedModule:
    """One module: kind, shape (m, n), and per task rank and scale (0 where absent).

    Attributes:
      total_rank: sum of the ranks; the rank of an exact merge, if below m and n.
    """

    kind: str
    shape: tuple[int, int]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    total_rank: int


@dataclass(frozen=True)
class Memory:
    """Estimates of the memory and the files of a merge, in bytes.

    Attributes:
      factors: all adapters in memory, float32, padded to one rank per module.
      largest_dense: the T dense updates of the largest module, which a rule in full
        space holds at a time.
      output: weight file of an exact merge, in the inputs' common dtype.
    """

    factors: int
    largest_dense: int
    output: int


@dataclass(frozen=True)
class Plan:
    """What `plan_peft` finds.

    Attributes:
      adapters: the inputs.
      modules: module -> coverage.
      dtype: dtype in which the merge is saved by default.
      rank: default output rank, the largest total rank of any module.
      max_lora_rank: what vLLM then needs as ``--max-lora-rank``; None if it takes none.
      memory: estimates.
      conflicts: what `load_peft` would refuse under the same options.
      notes: what is allowed but worth knowing.
    """

    adapters: tuple[PlannedAdapter, ...]
    modules: dict[str, PlannedModule]
    dtype: str
    rank: int
    max_lora_rank: int | None
    memory: Memory
    conflicts: tuple[Conflict, ...]
    notes: tuple[Message, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            **asdict(self),
            "conflicts": [
                {"kind": conflict.kind, "message": str(conflict.message)}
                for conflict in self.conflicts
            ],
            "notes": [str(note) for note in self.notes],
        }


def plan_peft(
    folders: Sequence[Folder],
    *,
    read_tensors: bool = False,
    hub: bool = False,
    **options: Any,
) -> Plan:
    """Coverage, ranks, scales, conflicts and costs of merging PEFT adapters.

    Reads configs and headers only. What lies between the adapters becomes an entry of
    ``conflicts``, so that all conflicts are found at once.

    Args:
      folders: adapter folders.
      read_tensors: read the tensors too, to find modules that are zero, NaN or Inf.
      hub: as for `load_peft`.
      **options: as for `load_peft`.

    Raises:
      AdapterError: one of the inputs cannot be read at all.
    """
    read = ReadOptions(**options)
    opened = open_adapters(folders, read, hub=hub)
    found = tuple(conflicts(opened, read))
    zeros: list[tuple[str, ...] | None] = [None] * len(opened)
    if read_tensors and not any(c.kind in ("shape", "layout") for c in found):
        from jaxmerge.io.read import assemble  # loads JAX, which headers do not need

        zeros = [source.zero_modules for source in assemble(opened, read).sources]
    modules = _modules(opened)
    dtype = output_dtype(s.dtype for adapter in opened for s in adapter.specs.values())
    rank = max(module.total_rank for module in modules.values())
    return Plan(
        adapters=tuple(
            _planned(adapter, zero) for adapter, zero in zip(opened, zeros, strict=True)
        ),
        modules=modules,
        dtype=dtype.name,
        rank=rank,
        max_lora_rank=vllm_max_lora_rank(rank) if _for_vllm(opened) else None,
        memory=_memory(modules, rank, dtype.itemsize),
        conflicts=found,
        notes=tuple(_notes(opened, modules, rank)),
    )


def _for_vllm(opened: Sequence[OpenAdapter]) -> bool:
    """Whether the merge is a PEFT folder, the only kind that vLLM loads."""
    return opened[0].config.kind == "peft"


def _planned(adapter: OpenAdapter, zeros: tuple[str, ...] | None) -> PlannedAdapter:
    config, specs = adapter.config, adapter.specs.values()
    return PlannedAdapter(
        name=adapter.name,
        path=adapter.folder,
        peft_type=config.peft_type,
        base_model=config.base_model,
        revision=config.revision,
        task_type=config.task_type,
        dtype=common_dtype(spec.dtype for spec in specs).name,
        weight_file=adapter.tensors.path.name,
        modules=len(specs),
        ranks=tuple(sorted({spec.rank for spec in specs})),
        scales=tuple(sorted({spec.scale for spec in specs})),
        heads=tuple(adapter.heads),
        zero_modules=zeros,
        kind=config.kind,
    )


def _modules(opened: Sequence[OpenAdapter]) -> dict[str, PlannedModule]:
    modules = {}
    for name in sorted({name for adapter in opened for name in adapter.specs}):
        specs = [adapter.specs.get(name) for adapter in opened]
        first = next(spec for spec in specs if spec is not None)
        ranks = tuple(spec.rank if spec else 0 for spec in specs)
        modules[name] = PlannedModule(
            kind=first.layout.kind,
            shape=first.shape,
            ranks=ranks,
            scales=tuple(spec.scale if spec else 0.0 for spec in specs),
            total_rank=sum(ranks),
        )
    return modules


def _memory(modules: dict[str, PlannedModule], rank: int, itemsize: int) -> Memory:
    tasks = max(len(module.ranks) for module in modules.values())
    sides = {name: sum(module.shape) for name, module in modules.items()}
    return Memory(
        factors=_FLOAT32
        * tasks
        * sum(max(m.ranks) * sides[name] for name, m in modules.items()),
        largest_dense=_FLOAT32
        * tasks
        * max(m.shape[0] * m.shape[1] for m in modules.values()),
        output=itemsize * rank * sum(sides.values()),
    )


def _notes(
    opened: Sequence[OpenAdapter], modules: dict[str, PlannedModule], rank: int
) -> list[Message]:
    notes = []

    def note(*parts: str | Option) -> None:
        notes.append(Message(parts))

    for adapter in opened:
        for said in adapter.notes:
            note(f"{adapter.folder}: {said}")
    partial = sum(1 for module in modules.values() if 0 in module.ranks)
    if partial:
        note(
            f"{partial} of {len(modules)} modules are not adapted by every task; "
            "a task counts as absent there"
        )
    nameless = [adapter.name for adapter in opened if not adapter.config.base_model]
    if nameless:
        note(f"no base model is named by {', '.join(nameless)}")
    if len({adapter.config.task_type for adapter in opened}) > 1:
        note("the task types differ, so the merge is saved without one")
    above = sum(1 for module in modules.values() if rank > min(module.shape))
    if above:
        note(
            f"the default output rank {rank} is above what {above} modules can hold; ",
            Option("rank", "auto", quoted=True),
            ", ",
            Option("rank", "<number>"),
            " or ",
            Option("energy", "<share>"),
            " makes it smaller",
        )
    if _for_vllm(opened) and vllm_max_lora_rank(rank) is None:
        note(
            f"vLLM takes ranks up to {VLLM_RANKS[-1]}, not {rank}; truncate to serve it"
        )
    return notes
