"""``jaxmerge check``: is each adapter, alone, better than no adapter at all?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxmerge.cli import flags
from jaxmerge.cli.command import Options, command
from jaxmerge.cli.console import Console
from jaxmerge.cli.exits import WorseThanBase
from jaxmerge.cli.read_flags import Reading
from jaxmerge.reports.standings import standings

if TYPE_CHECKING:
    from jaxmerge.jobs.checking import Checked


@command(reads=Reading(without=("heads", "allow_zero")))
def check(
    console: Console,
    options: Options,
    *,
    folders: flags.Folders,
    base: flags.BaseFolder,
    data: flags.LabeledFolder,
    names: flags.Names = None,
    text_heads: flags.TextHeads = None,
    task_type: flags.ModelType = None,
    limit: flags.RowLimit = None,
    batch: flags.BatchSize = 64,
    logit_scale: flags.LogitScale = None,
    max_length: flags.MaxLength = None,
    strict: bool = False,
) -> None:
    """Test each adapter alone against its base, on its own labeled data.

    The base gets the adapter's head. A difference in accuracy is clear where McNemar's
    exact test gives p below 0.05. Without labels only predictions are compared. For
    causal language models nats per token are compared.

    Args:
      strict: Exit code 1 if any adapter is worse than its base; data without labels
        are refused.
    """
    from jaxmerge.jobs import checking

    found = checking.check(**options, progress=console.progress)
    console.show(found, _lines)
    if strict and found.worse:
        raise WorseThanBase(f"worse than no adapter: {', '.join(found.worse)}")


def _lines(found: "Checked") -> Iterator[Any]:
    yield standings(found.standings)
    yield ""
    yield from (f"note: {note}" for note in found.notes)
    yield f"verdict: {found.verdict}"
