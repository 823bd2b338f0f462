"""An adapter that was written, as people look at it."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from jaxmerge.io.files import CONFIG_FILE
from jaxmerge.reports.tables import size

if TYPE_CHECKING:
    from jaxmerge.io import SaveReport


class Saving(Protocol):
    """What `jaxmerge.merge`, `learn` and `extract` give of what they wrote."""

    @property
    def saved(self) -> "SaveReport": ...

    @property
    def seconds(self) -> float: ...

    @property
    def size(self) -> int: ...

    @property
    def notes(self) -> tuple[str, ...]: ...


def saved_lines(found: Saving) -> Iterator[str]:
    """Lines of what was written, of what writing lost, and notes."""
    saved = found.saved
    if saved.rank:
        needed = saved.max_lora_rank
        serving = f"--max-lora-rank {needed}" if needed else "takes no such rank"
        of_peft = CONFIG_FILE in saved.files
        yield f"  rank      {saved.rank}" + (f" (vLLM: {serving})" if of_peft else "")
    else:
        yield "  rank      none: weight deltas, to be added to the base weights"
    if any(saved.cast_error.values()):
        error = f"at most {_extreme(saved.cast_error, max)}"
        yield f"  dtype     {saved.dtype}, cast error {error}"
    else:
        yield f"  dtype     {saved.dtype}, saved without a loss"
    if any(share < 1 for share in saved.energy.values()):
        mean = sum(saved.energy.values()) / len(saved.energy)
        least = f"at least {_extreme(saved.energy, min)}"
        yield f"  energy    {mean:.4f} kept on average, {least}"
    else:
        yield "  energy    all of it, saving truncated nothing"
    if saved.omitted:
        yield f"  omitted   {len(saved.omitted)} modules"
    yield f"  size      {size(found.size)}, done in {found.seconds:.1f} s"
    yield from (f"  note: {note}" for note in found.notes)


def _extreme(values: Mapping[str, float], pick: Callable[..., Any]) -> str:
    module = pick(values, key=values.__getitem__)
    return f"{values[module]:.3g} ({module})"
