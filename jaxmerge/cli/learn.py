"""``jaxmerge learn``: adapters, their base and unlabeled data in, one adapter out."""

import logging
import os
import sys
import time
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmerge.cli.console import Console
from jaxmerge.cli.errors import CommandError, FitDiverged, refusing_bad_input
from jaxmerge.cli.learned import lines, summary, title
from jaxmerge.cli.merge import Dtype
from jaxmerge.cli.options import (
    BaseFolder,
    DataFolder,
    Folders,
    Force,
    Heads,
    Json,
    LogitScale,
    MaxLength,
    Names,
    Out,
    Quiet,
    TextHeads,
    numbers,
    with_read_options,
)
from jaxmerge.cli.runtime import start_jax
from jaxmerge.jobs.model_inputs import read_model_inputs

if TYPE_CHECKING:
    from jaxmerge.io import Adapters
    from jaxmerge.jobs.fitting import Outcome
    from jaxmerge.jobs.learned_recipe import Recipe
    from jaxmerge.learning import Progress
    from jaxmerge.tasks import Base, Unlabeled


class Method(StrEnum):
    tara_a = "tara-a"
    tara_b = "tara-b"
    adamerging = "adamerging"


class Loss(StrEnum):
    entropy = "entropy"
    null_space = "null-space"


class Objective(StrEnum):
    tchebycheff = "tchebycheff"
    tchebycheff_absolute = "tchebycheff-absolute"
    linear = "linear"


@partial(with_read_options, heads=Heads.keep)
def learn(
    *,
    folders: Folders,
    base: BaseFolder,
    data: DataFolder,
    method: Annotated[Method, typer.Option(help="What is learned.")],
    out: Out,
    names: Names = None,
    text_heads: TextHeads = None,
    pico: Annotated[
        bool, typer.Option("--pico", help="Learn on directions calibrated by Pico.")
    ] = False,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared", help="One coefficient of a task for all modules (AdaMerging)."
        ),
    ] = False,
    loss: Annotated[
        Loss,
        typer.Option(
            help="Of each task: entropy of its predictions, or the share of the inputs "
            "that its adapter no longer sees (NSC), which needs no heads."
        ),
    ] = Loss.entropy,
    initial: Annotated[
        float | None,
        typer.Option(help="Every coefficient at the start; 0.4, AdaMerging 0.3."),
    ] = None,
    objective: Annotated[
        Objective | None,
        typer.Option(help="Of all tasks together; tchebycheff, AdaMerging linear."),
    ] = None,
    preference: Annotated[
        str | None,
        typer.Option(
            metavar="P,P,...", help="One for each adapter, scaled to sum 1; else equal."
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Smoothing: small cares for the worst task only.")
    ] = 1.0,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    steps: Annotated[int, typer.Option(min=1)] = 500,
    batch: Annotated[
        int, typer.Option(min=1, help="Inputs of each task in a step.")
    ] = 16,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the batches.")
    ] = 0,
    logit_scale: LogitScale = None,
    max_length: MaxLength = None,
    accumulate: Annotated[
        bool,
        typer.Option("--accumulate", help="Less memory: one task after the other."),
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the checkpoints, for one fit at a time and apart from "
            "--out; it is kept. By default beside --out, and removed at the end."
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the output; the inputs' unless given.")
    ] = None,
    read: dict[str, Any],
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Learn how to merge adapters, from inputs without labels.

    Coefficients are fitted through the base model so that the merged model is sure of
    its predictions on every task, or that every adapter still sees its inputs. If the
    command is stopped, the same command goes on from the last checkpoint. Exit code 1
    if the fit diverges.
    """
    from jaxmerge.io.staging import check_target

    place = Path(os.path.abspath(out))
    work_folder = work or place.with_name(f"{place.name}.learning")
    given = (base, data, text_heads, work)
    inputs = [*folders, *(path for path in given if path is not None)]
    check_target(out, force=force, inputs=inputs)
    _check_apart(work_folder, place)
    if loss is Loss.null_space:
        _refuse_given({"--text-heads": text_heads, "--logit-scale": logit_scale})
    console = Console(as_json=as_json, quiet=quiet)
    given = numbers(preference, "--preference") or [1.0] * len(folders)
    if len(given) != len(folders):
        raise CommandError(
            f"--preference has {len(given)} numbers for {len(folders)} adapters"
        )
    start_jax()
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every old step
    from jaxmerge import io
    from jaxmerge.jobs.learned_recipe import Recipe
    from jaxmerge.learning.work import Work
    from jaxmerge.tasks.record import HISTORY_FILE, PHI_FILE, fit_identity

    clock = time.perf_counter()
    with refusing_bad_input():
        asked = Recipe(
            method=method.value,
            pico=pico,
            shared=shared,
            loss=loss.value,
            initial=initial,
            objective=objective and objective.value,
            preference=tuple(given),
            alpha=alpha,
            rate=rate,
            steps=steps,
            batch=batch,
            seed=seed,
            accumulate=accumulate,
        )
    adapters, model, heads, unlabeled, files = read_model_inputs(
        *(console, folders, read),
        base=base,
        data=data,
        names=names,
        text_heads=text_heads,
        max_length=max_length,
        with_heads=loss is Loss.entropy,
        with_digests=True,
    )
    with refusing_bad_input():
        recipe = asked
        if loss is Loss.entropy:
            recipe = replace(asked, logit_scale=model.scale(logit_scale))
        kept = Work(work_folder, fit_identity(recipe, adapters, unlabeled, files))
    with kept:
        outcome = _learn(console, recipe, model, adapters, heads, unlabeled, kept)
        record = {
            **recipe.to_record(),
            "max_length": unlabeled.max_length,
            "anchors": outcome.anchors,
            "files": files,
        }
        with console.progress("writing and reading back", 1) as advance:
            report = io.save_peft(
                out,
                outcome.updates,
                like=adapters,
                dtype=dtype and dtype.value,
                card=record,
                extra_files={
                    PHI_FILE: outcome.phis,
                    HISTORY_FILE: outcome.history._asdict(),
                },
                force=force,
                inputs=inputs,
            )
            advance(1)
        if work is None:
            kept.remove()
    document = {
        "recipe": record,
        "adapters": list(adapters.names),
        **summary(recipe, adapters.names, outcome),
        "seconds": round(time.perf_counter() - clock, 3),
        "bytes": sum((out / name).stat().st_size for name in report.files),
        "notes": list(unlabeled.notes),
        **report.to_json(),
    }
    console.result(document, lambda: lines(recipe, report, document))


def _refuse_given(options: dict[str, Any]) -> None:
    """Options of predictions, where the loss makes none."""
    for flag, value in options.items():
        if value is not None:
            raise CommandError(
                f"--loss null-space needs no predictions; leave out {flag}"
            )


def _check_apart(work: Path, out: Path) -> None:
    """Refuses checkpoints in the folder that is to appear whole, or around it."""
    one, other = work.resolve(), out.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise CommandError(
            f"--work {work} is, holds or lies in --out {out}; choose a folder apart "
            "from it"
        )


def _learn(
    console: Console,
    recipe: "Recipe",
    model: "Base",
    adapters: "Adapters",
    heads: dict[str, Any],
    unlabeled: "Unlabeled",
    work: Any,
) -> "Outcome":
    """Fits with a progress bar; says where a fit that is stopped can go on."""
    from jaxmerge.jobs.fitting import learn as fit

    done = 0
    with console.progress("measuring each adapter alone", recipe.steps) as advance:

        def report(progress: "Progress") -> None:
            nonlocal done
            advance(progress.step - done, title=title(recipe, adapters.names, progress))
            done = progress.step

        try:
            return fit(
                *(recipe, model, adapters, heads, unlabeled), work=work, report=report
            )
        except FloatingPointError as error:
            raise FitDiverged(
                f"{error} (remove {work.folder} before a fit with other options)"
            ) from error
        except KeyboardInterrupt:
            if not console.quiet:
                print(
                    f"stopped; the same command goes on from {work.folder}",
                    file=sys.stderr,
                )
            raise
