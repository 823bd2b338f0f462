"""Merges the eight adapters in many ways and compares the merged models.

    make demo                            (or: python -m experiments.digits8.demo)

Scale and density of a merge of the adapters alone are those of the best mean normalised
accuracy on the validation images. Learned merges see the same images without labels;
nothing is chosen for them. What is shown is measured on the 700 test images of each
task. Normalised accuracy is that of the merged model divided by that of the task's own
adapter. Expected: 44 % for the base alone, 50 to 54 % for the merges of the adapters
alone and for those that learn by entropy, 84 % for TARA-B taught by the adapters.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded

import jax
import numpy as np
import typer

from experiments.digits8.data import SIZES, load_splits
from experiments.digits8.learning import LEARNED, STEPS, LearnedMethod, learn
from experiments.digits8.methods import METHODS, SCALES, Method
from experiments.digits8.model import ADAPTERS, Base, Exam, load_base, make_exam
from experiments.digits8.report import draw, lines, show
from experiments.digits8.results import Result
from experiments.digits8.score import accuracies
from experiments.digits8.tasks import TASKS
from jaxmerge.io import Adapters, load_peft, save_peft
from jaxmerge.refusals import Refusal
from jaxmerge.runtime import start_jax
from jaxmerge.spec import parse
from jaxmerge.stacks import task_updates
from jaxmerge.types import Update

SEEDS = (0, 1, 2)
RESULTS, PLOT, MERGED = "results.jsonl", "accuracy.png", "merged"
MINUTES = 3  # on two idle cores

Report = Callable[[str], None]


class Setting(NamedTuple):
    """What all methods have in common."""

    adapters: Adapters
    base: Base
    exams: dict[str, Exam]
    own: dict[str, np.ndarray]  # split -> accuracy of each task's own adapter
    images: dict[str, np.ndarray]  # task -> validation images, to learn from


class Merge(NamedTuple):
    """A merged model that was tested."""

    result: Result
    updates: Mapping[str, Update]


class Comparison(NamedTuple):
    """The base alone, then every method with every seed; the one that was saved."""

    results: list[Result]
    saved: Result


def run(
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
    report: Report = lambda _: None,
    force: bool = False,
) -> Comparison:
    """Runs the whole comparison and writes results, a plot and the best adapter.

    Args:
      out: folder for ``results.jsonl``, ``accuracy.png`` and ``merged``, the PEFT
        folder of the merge that is best on validation among those of low rank.
      methods: names from `METHODS` and `LEARNED`; all unless given.
      seeds: seeds of the methods that draw at random; the first one is also used to
        choose their scale and density, and for the batches of learned merges.
      report: takes lines of progress.
      force: replace the results of an earlier run.

    Raises:
      Refusal: an unknown method, or results of an earlier run without ``force``.
    """
    chosen, started = _chosen_methods(methods), time.perf_counter()
    if (out / RESULTS).exists() and not force:
        raise Refusal(
            f"{out} has the results of an earlier run; remove it, choose another "
            "folder with --out (make demo OUT=...), or replace them with --force"
        )

    def tell(done: int, what: str) -> None:
        passed = time.perf_counter() - started
        report(f"{done:2} of {len(chosen)}  {passed:4.0f} s  {what}")

    report(_plan(chosen))
    setting = prepare()
    results, merges = [_base_alone(setting)], []
    tell(0, f"base, no adapter: {100 * results[0].mean_normalised:.1f} %")
    for done, method in enumerate(chosen, 1):
        found = _found(method, setting, seeds)
        mean = np.mean([merge.result.mean_normalised for merge in found])
        tell(done, f"{method.name}: {100 * mean:.1f} %")
        merges += found
    results += [merge.result for merge in merges]
    out.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps(asdict(result)) + "\n" for result in results)
    (out / RESULTS).write_text(rows)
    draw(out / PLOT, results)
    saved = _save_best(out / MERGED, merges, setting, force=force)
    return Comparison(results, saved)


def _plan(methods: Sequence[Method | LearnedMethod]) -> str:
    fits = sum(isinstance(method, LearnedMethod) for method in methods)
    merges = sum(len(m.pipelines) for m in methods if isinstance(m, Method))
    validation, test = (len(TASKS) * SIZES[split] for split in ("validation", "test"))
    return (
        f"Merges {len(TASKS)} adapters of a small vision transformer by "
        f"{len(methods)} methods: {merges} merges, each at {len(SCALES)} scales on "
        f"{validation:,} validation images, the best of each method on {test:,} test "
        f"images, {fits} of the methods learned without labels. About {MINUTES} "
        "minutes on two idle cores, longer on busy ones."
    )


def _chosen_methods(names: Sequence[str] | None) -> list[Method | LearnedMethod]:
    known = {method.name: method for method in (*METHODS, *LEARNED)}
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise Refusal(f"no method {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


def prepare() -> Setting:
    base, splits = load_base(), load_splits()
    adapters = load_peft([ADAPTERS / name for name in TASKS])
    exams = {s: make_exam(TASKS, splits[s], base.heads) for s in ("validation", "test")}
    own = {split: np.zeros(len(TASKS)) for split in exams}
    for split, exam in exams.items():
        for task in range(len(TASKS)):
            update, alone = task_updates(adapters.stacks, task), exam.of_task(task)
            own[split][task] = accuracies(base.params, update, [1.0], alone).item()
    images = {t: TASKS[t].examples(splits["validation"])[0] for t in TASKS}
    return Setting(adapters, base, exams, own, images)


def _base_alone(setting: Setting) -> Result:
    nothing = np.zeros(len(TASKS))
    updates = parse("concat").run(setting.adapters.stacks, weights=nothing)
    exam, own = setting.exams["validation"], setting.own["validation"]
    # at all scales, which mean nothing here: the program is there anyway
    found = accuracies(setting.base.params, updates, SCALES, exam)[0]
    validation = float((found / own).mean())
    return _tested("Base, no adapter", "", None, validation, updates, 0.0, setting)


def _merge(
    text: str, seed: int | None, setting: Setting
) -> tuple[dict[str, Update], float]:
    """The merged updates, and the seconds that it took."""
    pipeline = parse(text)
    key = jax.random.key(seed) if pipeline.random else None
    started = time.perf_counter()
    updates = jax.block_until_ready(pipeline.run(setting.adapters.stacks, key=key))
    return updates, time.perf_counter() - started


def _found(
    method: Method | LearnedMethod, setting: Setting, seeds: Sequence[int]
) -> list[Merge]:
    if isinstance(method, LearnedMethod):
        return [_learn(method, setting, seeds[0])]
    return _compare(method, setting, seeds)


def _learn(method: LearnedMethod, setting: Setting, seed: int) -> Merge:
    stacks, started = setting.adapters.stacks, time.perf_counter()
    updates = learn(
        method, stacks, setting.base, setting.images, seed=seed, steps=STEPS
    )
    seconds = time.perf_counter() - started
    exam, own = setting.exams["validation"], setting.own["validation"]
    scales = np.ones(len(SCALES))  # the program for so many is there anyway
    validation = accuracies(setting.base.params, updates, scales, exam)[0] / own
    of = (method.name, method.pipeline, seed, float(validation.mean()))
    return Merge(_tested(*of, updates, seconds, setting), updates)


def _compare(method: Method, setting: Setting, seeds: Sequence[int]) -> list[Merge]:
    """Chooses scale and density on validation, then measures on test."""
    exam, own = setting.exams["validation"], setting.own["validation"]
    tried = []
    for text in method.pipelines:
        updates, _ = _merge(text, seeds[0], setting)
        found = accuracies(setting.base.params, updates, SCALES, exam)
        means = (found / own).mean(axis=1)
        index = int(means.argmax())
        tried.append((float(means[index]), f"{text}|scale({SCALES[index]})"))
    validation, text = max(tried, key=lambda pair: pair[0])
    merges = []
    for seed in seeds if parse(text).random else (None,):
        updates, seconds = _merge(text, seed, setting)
        of = (method.name, text, seed, validation)
        merges.append(Merge(_tested(*of, updates, seconds, setting), updates))
    return merges


def _tested(
    method: str,
    text: str,
    seed: int | None,
    validation: float,
    updates: Mapping[str, Update],
    seconds: float,
    setting: Setting,
) -> Result:
    """A result with its accuracies on the test images."""
    found = accuracies(setting.base.params, updates, [1.0], setting.exams["test"])[0]
    normalised = found / setting.own["test"]
    return Result(
        method=method,
        pipeline=text,
        seed=seed,
        validation=validation,
        accuracy=dict(zip(TASKS, found.tolist(), strict=True)),
        normalised=dict(zip(TASKS, normalised.tolist(), strict=True)),
        mean_normalised=float(normalised.mean()),
        seconds=seconds,
    )


def _save_best(
    folder: Path, merges: Sequence[Merge], setting: Setting, *, force: bool
) -> Result:
    """Saves the best merge of low rank, and tests what a reader of the folder gets."""
    low_rank = [merge for merge in merges if not parse(merge.result.pipeline).dense]
    if not low_rank:
        raise ValueError("no method gives an adapter of low rank that could be saved")
    best, updates = max(low_rank, key=lambda merge: merge.result.validation)
    seed = {} if best.seed is None else {"seed": best.seed}
    card = {"method": best.method, "pipeline": parse(best.pipeline).text} | seed
    save_peft(folder, updates, like=setting.adapters, card=card, force=force)
    saved = task_updates(load_peft([folder]).stacks, 0)
    params, exam = setting.base.params, setting.exams["test"]
    found = accuracies(params, saved, [1.0], exam)[0]
    if abs(found - list(best.accuracy.values())).max() > 0.01:
        raise RuntimeError(f"{folder}: the saved adapter is not the merge: {found}")
    return best


def main(
    out: Annotated[Path, typer.Option(help="folder for results")] = Path("demo_out"),
    force: Annotated[bool, typer.Option(help="replace an earlier run")] = False,
) -> None:
    """Merges the eight adapters in many ways and compares them on held-out images."""
    start_jax()
    started = time.perf_counter()
    try:
        results, saved = run(out, report=_tell, force=force)
    except Refusal as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    show(lines(results, saved, time.perf_counter() - started, out))


def _tell(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    typer.run(main)
