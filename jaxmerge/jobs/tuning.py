"""Adapters and a way to score merges in, the numbers of the best merge out."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

from jaxmerge.io.options import TaskType
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import (
    Folder,
    ReadOptions,
    paths_of,
    read_adapters,
    read_model_inputs,
    refusing_bad_input,
)
from jaxmerge.jobs.tuned import SearchStopped, Tried, Tuned
from jaxmerge.jobs.tuning_inputs import (
    ACCURACY,
    check_score,
    identity,
    model_measure,
    needs_heads,
    seeds_from,
    task_shares,
)
from jaxmerge.jobs.tuning_merges import Merges, candidate_folder
from jaxmerge.jobs.tuning_scores import command_scores, model_scores
from jaxmerge.jobs.tuning_space import SearchName, ends_met, read_space
from jaxmerge.reports.scores import check_plot
from jaxmerge.reports.search_plot import write_search_plot
from jaxmerge.spec import parse
from jaxmerge.tuning.progression import (
    Budget,
    Evaluate,
    best_row,
    run_searches,
    title_of,
)
from jaxmerge.tuning.trace import Trace


def tune(
    folders: Sequence[Folder],
    pipeline: str | Sequence[str],
    *,
    base: Folder | None = None,
    data: Folder | None = None,
    score: str = "distillation",
    command: str | None = None,
    maximise: bool | None = None,
    weights: str | Sequence[float] | None = None,
    masks: float = 0.0,
    search: SearchName = "line",
    points: int = 9,
    refinements: int = 5,
    population: int | None = None,
    evaluations: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    seeds: int = 3,
    preference: Sequence[float] | None = None,
    temperature: float = 1.0,
    logit_scale: float | None = None,
    stats: Folder | None = None,
    names: Sequence[str] | None = None,
    text_heads: Folder | None = None,
    task_type: TaskType | None = None,
    limit: int | None = None,
    batch: int = 64,
    max_length: int | None = None,
    out: Folder | None = None,
    work: Folder | None = None,
    dense: Literal["error", "full"] = "error",
    dtype: str | None = None,
    plot: Folder | None = None,
    force: bool = False,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Tuned:
    """Searches the scale of a merge, and whatever else is in braces.

    In a pipeline ``scale({0.1:2})`` is a range and ``trim(density={0.2, 0.4})`` a
    choice. Where nothing is varied it is the last scale, from 0.05 to 5. Every
    combination of choices is a search by itself. A call that was stopped goes on when
    it is made again, and tries the same merges, also with a larger budget.

    Args:
      folders: PEFT adapter folders.
      pipeline: one or several, see `jaxmerge.spec.varied.vary`.
      base: Hugging Face folder of the base model; not with a command.
      data: folder with the inputs of each task, see `jaxmerge.learn`; not with a
        command.
      score: a loss of `jaxmerge.learn`, without labels, "distillation" unless given; or
        "accuracy", divided by that of the own adapter, with the labels of the data.
      command: shell command that prints a number in its last line; ``{merged}`` in it
        stands for the merged folder. In the place of base, data and score.
      maximise: whether the number of the command is to be large.
      weights: a number for each task; or a text in which ranges may stand,
        ``"1,{0.5:2}"``, or one range for all tasks.
      masks: search which tasks are left out of which blocks of the model, at most this
        share of all pairs (ENMP, 0.2 in the paper). Needs ``search="cma"``.
      search: "line", a few numbers of each range and then golden section; "grid"; or
        "cma", CMA-ES (needs the extra ``tune``).
      points: of each range, for "grid" and at the start of "line".
      refinements: steps of golden section.
      population: merges of a generation of CMA-ES.
      evaluations: largest number of merges.
      minutes: for merges and scores, at most.
      seed: of steps that draw at random and of CMA-ES.
      seeds: how many seeds, from ``seed`` on, a merge that draws at random is scored
        with; the score is their mean. It is written with the first.
      preference: weight of each task in the score; equal ones unless given.
      temperature: of the predictions that distillation compares.
      logit_scale: multiplies the logits; what the base stores unless given.
      stats: folder of `jaxmerge.collect`, for pipelines that need it.
      names: names of the tasks; by default those of the folders.
      text_heads: see `jaxmerge.learn`, and so ``task_type``.
      limit: number of inputs of each task, at even distances; by default all.
      batch: inputs that go through the model at a time.
      max_length: number of tokens to which texts are truncated.
      out: folder to write the best merge into; none unless given.
      work: folder of what was tried; by default beside ``out``, if that is given.
      dense: "full" writes the weight deltas of pipelines with dense results.
      dtype: of the output; that of the inputs unless given.
      plot: file for a plot of what was tried, as PNG.
      force: replace ``out`` and the plot.
      progress: shows how far the job is, and the best merge so far.
      **read: see `jaxmerge.io.load_peft`; saved modules are kept unless given.

    Returns:
      `Tuned`.

    Raises:
      Refusal: what cannot be searched as asked for; says what to do instead.
      SearchStopped: it was interrupted (a KeyboardInterrupt that has what was tried).
    """
    options: ReadOptions = {"heads": "keep", **read}
    given = {"base": base, "data": data}
    others = {"text_heads": text_heads, "limit": limit, "logit_scale": logit_scale}
    others |= {"preference": preference, "max_length": max_length}
    others["task_type"] = task_type
    check_score(score, command, maximise, given=given, others=others)
    space = read_space(
        pipeline,
        weights=weights,
        masks=masks,
        tasks=names or [Path(folder).name for folder in folders],
        search=search,
        points=points,
        refinements=refinements,
        population=population,
        endless=(evaluations, minutes) != (None, None),
        seed=seed,
    )
    budget = Budget.checked(evaluations, minutes)
    every = seeds_from(seed, seeds) if space.random else (seed,)
    target, place, drawn = (None if x is None else Path(x) for x in (out, work, plot))
    if place is None and target is not None:
        place = target.absolute().with_name(f"{target.name}.tuning")
    merges = Merges(folders, stats, names, dense, dtype, options)
    merges.check(
        space,
        seed=seed,
        writes=not (command is None and out is None),
        out=target,
        work=place,
        force=force,
        inputs=paths_of(*folders, stats, base, data, text_heads, place),
    )
    check_plot(drawn, force=force)
    model, files = None, dict[str, Any]()
    if base is None or data is None:
        adapters = read_adapters(folders, names, options)
    else:
        model = read_model_inputs(
            folders,
            base=base,
            data=data,
            names=names,
            text_heads=text_heads,
            task_type=task_type,
            max_length=max_length,
            limit=limit,
            with_heads=needs_heads(score),
            with_digests=True,
            progress=progress,
            read=options,
        )
        adapters, files = model.adapters, model.files
    families = space.families(adapters)
    shares = task_shares(preference, adapters.names)
    scoring = {
        "score": score if command is None else command,
        "shares": shares,
        "temperature": temperature,
        "logit_scale": logit_scale,
        "limit": limit,
        **{"max_length": max_length, "task_type": task_type},
        **{"dense": dense, "dtype": dtype},
        "seeds": list(every),
    }
    settings = {**space.to_record(), **scoring, **identity(adapters, files, stats)}
    rising = score == ACCURACY if command is None else bool(maximise)
    told: dict[str, Any] = {
        "searched": tuple(map(str, space.pipelines)),
        "score": scoring["score"],
        "maximise": rising,
        "trace": place,
    }
    with Trace(place, settings) as trace, candidate_folder(place) as candidate:
        if model is None:
            evaluate: Evaluate = command_scores(
                command or "", partial(merges.write, force=True), candidate, every
            )
        else:
            numbers = {"temperature": temperature, "logit_scale": logit_scale}
            with refusing_bad_input():
                measure = model_measure(
                    *(score, model), data=data or "", batch=batch, **numbers
                )
            recipe = partial(merges.recipe, adapters)
            evaluate = model_scores(
                *(recipe, adapters, measure, shares, every), masked=masks > 0
            )
        total = evaluations or max(space.expected(families), len(trace.rows))
        with progress("trying merges", total) as advance:
            advance(len(trace.rows))
            try:
                finished = run_searches(
                    space.searches(families),
                    evaluate,
                    trace,
                    maximise=rising,
                    budget=budget,
                    report=lambda _: advance(1, title=title_of(trace, rising)),
                )
            except KeyboardInterrupt as error:
                raise SearchStopped(Tried(rows=tuple(trace.rows), **told)) from error
        rows = tuple(trace.rows)
    best = best_row(rows, maximise=rising)
    chosen = seed if parse(best.point.pipeline).random else None
    merged = None
    if target is not None:
        merged = merges.write(
            best.point, chosen, target, force=force, progress=progress
        )
    if drawn is not None:
        write_search_plot(rows, space.pipelines, scoring["score"], drawn)
    return Tuned(
        **told,
        rows=rows,
        seed=chosen,
        finished=finished,
        merged=merged,
        plot=drawn,
        notes=(
            *(adapters.notes if model is None else model.notes),
            *ends_met(families, best.point),
        ),
    )
