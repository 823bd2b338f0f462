"""Each adapter alone against its base, as a table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxmerge.reports.scores import share
from jaxmerge.reports.tables import Columns, table

if TYPE_CHECKING:
    from jaxmerge.diagnostics.alone import Standing
    from jaxmerge.diagnostics.likelihood import TextStanding

_COLUMNS = (
    *("adapter", "rows>", "accuracy>", "base>", "difference>", "most frequent>"),
    *("entropy>", "of base>", "agree>", "verdict"),
)
_TEXT_COLUMNS = (
    *("adapter", "rows>", "tokens>", "nats per token>", "base>", "gain>"),
    *("likelier>", "less likely>", "exact>", "of base>", "verdict"),
)


def standings(found: "Mapping[str, Standing] | Mapping[str, TextStanding]") -> Columns:
    """A table of classifiers, or of causal language models."""
    from jaxmerge.diagnostics.likelihood import TextStanding

    rows, columns = list[tuple[Any, ...]](), _COLUMNS
    for task, standing in found.items():
        if isinstance(standing, TextStanding):
            rows.append((task, *_of_texts(standing)))
            columns = _TEXT_COLUMNS
        else:
            rows.append((task, *_of_classes(standing)))
    return table(columns, rows)


def _of_texts(standing: "TextStanding") -> tuple[Any, ...]:
    nats = map("{:.4f}".format, (standing.nats, standing.base_nats))
    exact = map(share, (standing.exact, standing.base_exact))
    return (
        *(standing.rows, standing.tokens, *nats),
        f"{standing.gain:+.4f} ± {standing.standard_error:.4f}",
        *(standing.gained, standing.lost, *exact, standing.verdict),
    )


def _of_classes(standing: "Standing") -> tuple[Any, ...]:
    score, percent = standing.score, "{:.1%}".format
    accuracies: tuple[str, ...] = ("-",) * 4
    if score is not None:
        points = f"{100 * score.difference:+.1f} ± {100 * score.standard_error:.1f}"
        accuracies = (
            *map(percent, (score.accuracy, score.base_accuracy)),
            *(points, percent(score.most_frequent)),
        )
    return (
        *(standing.rows, *accuracies),
        *(f"{standing.entropy:.3f}", f"{standing.base_entropy:.3f}"),
        *(percent(standing.agreement), standing.verdict),
    )
