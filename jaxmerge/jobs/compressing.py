"""Adapters in terms of components that they share: into one folder, and out of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from jaxmerge.folders import Folder
from jaxmerge.jobs.converting import keeping_heads, write_adapter
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import ReadOptions, read_adapters
from jaxmerge.refusals import Option, Refusal
from jaxmerge.reports.scores import check_plot

if TYPE_CHECKING:
    from jaxmerge.io import Adapters


@dataclass(frozen=True)
class Compression:
    """What a number of components stores, and what it loses.

    Attributes:
      components: p.
      numbers: how many a folder holds, of bases, components and coefficients.
      share: of the numbers of the adapters.
      errors: task -> ``||restored - own|| / ||own||``, of all modules together.
    """

    components: int
    numbers: int
    share: float
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """Root mean square of the errors of the tasks."""
        squares = [error**2 for error in self.errors.values()]
        return (sum(squares) / len(squares)) ** 0.5

    @property
    def worst(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())


@dataclass(frozen=True)
class Compressed:
    """Adapters that were compressed into one folder.

    Attributes:
      path: the folder.
      adapters: their names.
      modules: how many modules they adapt.
      rank: width of the common bases; None for all directions.
      chosen: what the folder holds.
      curve: the same for every number of components, from 1 on.
      exact: whether every adapter comes back, up to rounding.
      core_numbers: numbers of the same bases with a core for each adapter.
      adapter_numbers: numbers of the factors as they were.
      notes: what reading changed or left out.
      plot: file that was written.
    """

    path: str
    adapters: tuple[str, ...]
    modules: int
    rank: int | None
    chosen: Compression
    curve: tuple[Compression, ...]
    exact: bool
    core_numbers: int
    adapter_numbers: int
    notes: tuple[str, ...] = ()
    plot: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        document = {**asdict(self), "adapters": list(self.adapters)}
        document["curve"] = [_row(found) for found in self.curve]
        document["chosen"] = _row(self.chosen)
        document["notes"] = list(self.notes)
        document["plot"] = None if self.plot is None else str(self.plot)
        return document


@dataclass(frozen=True)
class Restored:
    """An adapter that was restored into a PEFT folder.

    Attributes:
      path: the folder.
      adapter: its name.
      exact: whether it is the adapter that was compressed, up to rounding.
      rank: largest rank in the folder.
      energy: smallest share of the squared norm of a module that ``rank`` left.
      dtype: of its tensors.
    """

    path: str
    adapter: str
    exact: bool
    rank: int
    energy: float
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


def compress(
    folders: Sequence[Folder],
    *,
    out: Folder,
    components: int | None = None,
    rank: int | None = None,
    names: Sequence[str] | None = None,
    plot: Folder | None = None,
    force: bool = False,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Compressed:
    """Writes T adapters into one folder, in terms of components that they share.

    Each of them is restored from it by `jaxmerge.restore`: exactly with as many
    components as adapters and all directions, nearly with fewer. See
    `jaxmerge.compress_adapters`. Saved modules and biases are kept as they are.

    Args:
      folders: PEFT folders, or files of image models.
      out: folder to create, an orbax checkpoint.
      components: p; one for each adapter unless given.
      rank: width of the bases that the adapters share; all directions unless given.
      names: of the adapters; those of their folders unless given.
      plot: file for the errors against what is stored, as PNG.
      force: replace a folder that holds an adapter or checkpoint and nothing else, and
        the plot.
      progress: shows how far the job is.
      **read: see `jaxmerge.io.load_peft`.

    Returns:
      `Compressed`, with a row for every number of components.

    Raises:
      Refusal: folders that do not belong together, or a number below 1 or, of
        components, above that of the adapters.
    """
    from jaxmerge.io import save_orbax
    from jaxmerge.io.compressed_folder import compressed_adapters
    from jaxmerge.io.staging import check_target

    check_target(out, force=force, inputs=folders)
    for name, value in (("components", components), ("rank", rank)):
        if value is not None and value < 1:
            raise Refusal(Option(name, str(value)), ": expected at least 1")
    if components is not None and components > len(folders):
        raise Refusal(
            Option("components", str(components)),
            f": {len(folders)} adapters have at most as many components",
        )
    written = None if plot is None else Path(plot)
    check_plot(written, force=force)
    with progress("reading", 1) as advance:
        adapters = read_adapters(folders, names, keeping_heads(read))
        advance(1)
    chosen = len(adapters.names) if components is None else components
    with progress("compressing modules", len(adapters.stacks)) as advance:
        found = compressed_adapters(
            adapters, components=chosen, rank=rank, report=partial(advance, 1)
        )
    curve, core_numbers, adapter_numbers = _curve(adapters, rank)
    if written is not None:
        from jaxmerge.reports.memory_plot import write_memory_plot

        points = [(row.share, row.error, row.worst) for row in curve]
        write_memory_plot(points, written)
    save_orbax(out, found, force=force)
    return Compressed(
        path=str(out),
        adapters=adapters.names,
        modules=len(adapters.stacks),
        rank=rank,
        chosen=curve[chosen - 1],
        curve=curve,
        exact=found.exact,
        core_numbers=core_numbers,
        adapter_numbers=adapter_numbers,
        notes=adapters.notes,
        plot=written,
    )


def restore(
    folder: Folder,
    *,
    adapter: str,
    out: Folder,
    rank: int | None = None,
    ragged: bool = False,
    force: bool = False,
) -> Restored:
    """Writes one of the adapters that `jaxmerge.compress` compressed as a PEFT folder.

    Args:
      folder: written by `jaxmerge.compress`.
      adapter: its name.
      out: folder to create.
      rank: truncate to this rank; unless given the adapter has the rank that it had,
        or, where something was lost, all directions that are left.
      ragged: give each module its own rank.
      force: replace a folder that holds an adapter and nothing else.

    Returns:
      `Restored`.

    Raises:
      Refusal: another kind of folder, or no adapter of this name in it.
    """
    from jaxmerge.io import CompressedAdapters, load_orbax
    from jaxmerge.io.files import sha256
    from jaxmerge.io.formats import RECORD_FILE, format_of
    from jaxmerge.io.staging import check_target

    check_target(out, force=force, inputs=[folder])
    stored = load_orbax(folder) if format_of(folder) is not None else None
    if not isinstance(stored, CompressedAdapters):
        raise Refusal(
            f"{folder}: holds no compressed adapters; give a folder of "
            "`jaxmerge.compress`"
        )
    if adapter not in stored.names:
        raise Refusal(
            Option("adapter", adapter, quoted=True),
            f": not in {folder}; there are {', '.join(stored.names)}",
        )
    one = stored.restored(adapter)
    if not one.stacks:
        raise Refusal(f"{folder}: {adapter} adapts no module, so there is no adapter")
    digest = {RECORD_FILE: sha256(Path(folder) / RECORD_FILE)}
    card = {
        "restored": adapter,
        "exact": stored.exact,
        "files": {"compressed": {"path": str(folder), "sha256": digest}},
    }
    report = write_adapter(
        *(out, one),
        rank=rank,
        ragged=ragged,
        card=card,
        force=force,
        inputs=[folder],
    )
    return Restored(
        path=str(out),
        adapter=adapter,
        exact=stored.exact and min(report.energy.values()) > 1 - _ROUNDING,
        rank=report.rank,
        energy=min(report.energy.values()),
        dtype=report.dtype,
    )


_ROUNDING = 1e-6  # of the energy that a truncation leaves


def _row(found: Compression) -> dict[str, Any]:
    return {**asdict(found), "error": found.error, "worst": found.worst}


def _curve(
    adapters: "Adapters", rank: int | None
) -> tuple[tuple[Compression, ...], int, int]:
    """A row for each number of components, and what cores and adapters would hold."""
    import numpy as np

    from jaxmerge.mapping import map_modules
    from jaxmerge.mergers.reversible import compression_curve
    from jaxmerge.stacks import task_norms

    stacks, tasks = adapters.stacks, len(adapters.names)
    curves = map_modules(partial(compression_curve, rank=rank), stacks)
    norms = map_modules(task_norms, stacks)
    lost, own = np.zeros((tasks, tasks)), np.zeros(tasks)
    numbers = np.zeros(tasks, np.int64)
    for module, curve in curves.items():
        rows = np.minimum(np.arange(tasks), len(curve.numbers) - 1)
        squares = np.asarray(norms[module], np.float64) ** 2
        lost += np.asarray(curve.errors, np.float64)[rows] ** 2 * squares
        own += squares
        numbers += np.asarray(curve.numbers)[rows]
    whole = sum(int(curve.adapter_numbers) for curve in curves.values())
    errors = np.sqrt(lost / np.where(own == 0, 1, own))
    found = tuple(
        Compression(
            components=p + 1,
            numbers=int(numbers[p]),
            share=float(numbers[p] / whole),
            errors=dict(zip(adapters.names, errors[p].tolist(), strict=True)),
        )
        for p in range(tasks)
    )
    return found, sum(int(c.core_numbers) for c in curves.values()), whole
