"""``jaxmerge check``: is each adapter, alone, better than no adapter at all?"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import CommandError, WorseThanBase, refusing_bad_input
from jaxmerge.cli.options import (
    DATA_FILES,
    BaseFolder,
    Folders,
    Heads,
    Json,
    LogitScale,
    MaxLength,
    Names,
    Quiet,
    TextHeads,
    with_read_options,
)
from jaxmerge.cli.runtime import start_jax
from jaxmerge.jobs.model_inputs import read_model_inputs
from jaxmerge.reports.tables import table

if TYPE_CHECKING:
    from jaxmerge.diagnostics.alone import Standing

_COLUMNS = (
    *("adapter", "rows>", "accuracy>", "base>", "difference>", "most frequent>"),
    *("entropy>", "of base>", "agree>", "verdict"),
)
_REMEDY = (
    "give the number of its class as field label of every line, or in the array labels"
)


@partial(with_read_options, fixed={"heads": Heads.keep, "allow_zero": True})
def check(
    *,
    folders: Folders,
    base: BaseFolder,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with the inputs of each adapter and their classes, numbers "
            f"from 0 (field label, for CLIP array labels): {DATA_FILES}"
        ),
    ],
    names: Names = None,
    text_heads: TextHeads = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows of each file, at even distances; all unless given."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Inputs in the model at a time.")
    ] = 64,
    logit_scale: LogitScale = None,
    max_length: MaxLength = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit code 1 if any is worse than its base; data without labels are "
            "refused.",
        ),
    ] = False,
    read: dict[str, Any],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Test each adapter alone against its base, on its own labeled data.

    The base gets the adapter's head. A difference in accuracy is clear where McNemar's
    exact test gives p below 0.05. Without labels only predictions are compared.
    """
    console = Console(as_json=as_json, quiet=quiet)
    start_jax()
    from jaxmerge.diagnostics.alone import alone
    from jaxmerge.tasks import load_labels

    adapters, model, heads, unlabeled, _ = read_model_inputs(
        *(console, folders, read),
        base=base,
        data=data,
        names=names,
        text_heads=text_heads,
        max_length=max_length,
        limit=limit,
    )
    passes = 2 * sum(map(unlabeled.count, adapters.names))
    with refusing_bad_input(), console.progress("checking", passes) as advance:
        scale = model.scale(logit_scale)
        labels = load_labels(data, unlabeled, heads)
        if strict:
            _refuse_unlabeled(labels)
        found = alone(
            *(model, adapters, heads, unlabeled, labels),
            batch=batch,
            logit_scale=scale,
            report=lambda task, count: advance(count, title=f"checking {task}"),
        )
    notes = [*unlabeled.notes, *_notes(found)]
    paths = [
        {"path": source.path, "file": file}
        for source, file in zip(adapters.sources, unlabeled.files, strict=True)
    ]
    document = {
        "base": str(base),
        "data": str(data),
        "logit_scale": scale,
        "max_length": unlabeled.max_length,
        "adapters": {
            task: {**path, **_to_json(standing)}
            for path, (task, standing) in zip(paths, found.items(), strict=True)
        },
        "verdict": _verdict(found),
        "notes": notes,
    }

    def lines() -> Iterator[Any]:
        yield table(_COLUMNS, (_row(*entry) for entry in found.items()))
        yield ""
        yield from (f"note: {note}" for note in notes)
        yield f"verdict: {document['verdict']}"

    console.result(document, lines)
    worse = [task for task, standing in found.items() if standing.is_worse]
    if strict and worse:
        raise WorseThanBase(f"worse than no adapter: {', '.join(worse)}")


def _refuse_unlabeled(labels: Mapping[str, Any]) -> None:
    bare = [task for task, found in labels.items() if found is None]
    if bare:
        raise CommandError(
            f"--strict: the data of {', '.join(bare)} have no labels, so nothing says "
            f"whether an adapter is worse than its base; {_REMEDY}, or leave out "
            "--strict"
        )


def _to_json(standing: "Standing") -> dict[str, Any]:
    measured = standing._asdict()
    score = measured.pop("score")
    return {
        **measured,
        **({} if score is None else score._asdict()),
        "verdict": standing.verdict,
    }


def _row(task: str, standing: "Standing") -> tuple[Any, ...]:
    score, percent = standing.score, "{:.1%}".format
    accuracies: tuple[str, ...] = ("-",) * 4
    if score is not None:
        points = f"{100 * score.difference:+.1f} ± {100 * score.standard_error:.1f}"
        accuracies = (
            *map(percent, (score.accuracy, score.base_accuracy)),
            *(points, percent(score.most_frequent)),
        )
    return (
        *(task, standing.rows, *accuracies),
        *(f"{standing.entropy:.3f}", f"{standing.base_entropy:.3f}"),
        *(percent(standing.agreement), standing.verdict),
    )


def _notes(found: Mapping[str, "Standing"]) -> Iterator[str]:
    for task, standing in found.items():
        score = standing.score
        if score is None:
            yield (
                f"the data of {task} have no labels, which accuracy needs: {_REMEDY}"
            )
        elif score.accuracy <= score.most_frequent:
            yield (
                f"{task} is right no more often than one answer for all would be, the "
                f"most frequent class ({score.most_frequent:.1%})"
            )


def _verdict(found: Mapping[str, "Standing"]) -> str:
    """Who got which verdict.

    >>> from jaxmerge.diagnostics.alone import Standing
    >>> zero = Standing(8, False, 0.1, 0.1, 1.0, None)
    >>> _verdict({"cars": zero, "dtd": zero._replace(changes=True)})
    'does nothing: cars; no labels: dtd'
    """
    groups: dict[str, list[str]] = {}
    for task, standing in found.items():
        groups.setdefault(standing.verdict, []).append(task)
    return "; ".join(f"{says}: {', '.join(tasks)}" for says, tasks in groups.items())
