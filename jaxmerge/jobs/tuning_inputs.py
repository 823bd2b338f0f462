"""What scores are measured on: a base, its inputs, their labels where they are read."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from jaxmerge.io import Adapters, open_statistics
from jaxmerge.jobs.fit_recipe import model_losses
from jaxmerge.jobs.learn_recipe import LOSSES, TAUGHT, WITH_HEADS, check_loss
from jaxmerge.jobs.reading import Folder, ModelInputs, labels_of_all
from jaxmerge.jobs.tuning_scores import check_command
from jaxmerge.learning.null_space import check_seen
from jaxmerge.learning.teachers import ask_teachers, tokens_kept
from jaxmerge.refusals import Option, Refusal
from jaxmerge.tuning.measures import (
    Measure,
    loss_of_answers,
    measure_accuracy,
    measure_answers,
    measure_losses,
    measure_null_spaces,
)

ACCURACY = "accuracy"  # the one score that reads labels, and is to be large
SCORES = (*LOSSES, ACCURACY)


def needs_heads(score: str) -> bool:
    """Whether a score is one of predictions."""
    return score in WITH_HEADS or score == ACCURACY


def model_measure(
    score: str,
    inputs: ModelInputs,
    *,
    data: Folder,
    batch: int,
    temperature: float,
    logit_scale: float | None,
) -> Measure:
    """The measure of a score.

    Args:
      score: one of `SCORES`.
      inputs: what was read.
      data: folder of the inputs, for their labels.
      batch: inputs that go through the model at a time.
      temperature: of the predictions that distillation compares.
      logit_scale: multiplies the logits; what the base stores unless given.
    """
    adapters, base, heads, unlabeled, _ = inputs
    if base.causal:
        base.scale(logit_scale)  # refuses one that is given
        return _measure_tokens(score, inputs, batch=batch, temperature=temperature)
    if score == ACCURACY:
        labels = labels_of_all(data, unlabeled, heads)
        return measure_accuracy(base, adapters, heads, unlabeled, labels, batch=batch)
    if score == "null-space":
        check_seen(adapters.names, adapters.stacks)
        return measure_null_spaces(base, adapters, unlabeled, batch=batch)
    options = {"temperature": temperature}
    if score in WITH_HEADS:
        options["logit_scale"] = base.scale(logit_scale)
    loss = loss_of_answers(score, **options)
    return measure_answers(loss, base, adapters, heads, unlabeled, batch=batch)


def _measure_tokens(
    score: str, inputs: ModelInputs, *, batch: int, temperature: float
) -> Measure:
    """The measure of a score that is a loss at the tokens of a language model."""
    check_loss(score, Option("score", score, quoted=True), causal=True)
    _, base, _, unlabeled, _ = inputs
    asked = (base, inputs.adapters, inputs.heads, unlabeled)
    losses = model_losses(score, *asked, temperature=temperature)
    answers = None
    if score in TAUGHT:
        top = tokens_kept(base, inputs.adapters) if score == "distillation" else None
        how = {"batch": batch, "top": top, "temperature": temperature}
        answers = ask_teachers(*asked, **how)
    return measure_losses(losses, base, unlabeled, batch=batch, answers=answers)


def check_score(
    score: str,
    command: str | None,
    maximise: bool | None,
    *,
    given: Mapping[str, Any],
    others: Mapping[str, Any],
) -> None:
    """Refuses what does not go together, before any work.

    Args:
      score: name of a score.
      command: scores in its place, unless None.
      maximise: whether the number of the command is to be large.
      given: base and data.
      others: options that scores through the model take.
    """
    if score not in SCORES:
        raise Refusal(
            Option("score", score, quoted=True),
            f": expected one of {', '.join(SCORES)}",
        )
    if command is not None:
        for name, value in {**given, **others}.items():
            if value is not None:
                raise Refusal(
                    *(Option("command"), " scores merges by itself; leave out "),
                    Option(name),
                )
        check_command(command)
        if maximise is None:
            raise Refusal(
                *("whether a high number of ", Option("command"), " is good is not "),
                *("known; give ", Option("maximise", "True"), " or "),
                Option("maximise", "False"),
            )
        return
    if maximise is not None:
        raise Refusal(
            *(Option("maximise"), " is for "),
            *(Option("command"), "; losses are minimised and accuracy is maximised"),
        )
    if None in given.values():
        raise Refusal(
            *("to score merges give ", Option("base"), " and ", Option("data")),
            *(", or a shell ", Option("command"), " that prints a number"),
        )
    if not needs_heads(score):
        for name in ("text_heads", "logit_scale"):
            if others[name] is not None:
                raise Refusal(
                    Option("score", score, quoted=True),
                    " needs no predictions; leave out ",
                    Option(name),
                )


def task_shares(
    preference: Sequence[float] | None, tasks: Sequence[str]
) -> dict[str, float]:
    """Weight of each task in the score, of sum 1; equal ones unless given."""
    given = [1.0] * len(tasks) if preference is None else list(preference)
    total = math.fsum(given)
    known = all(0 <= share < math.inf for share in given) and total > 0
    if len(given) != len(tasks) or not known:
        raise Refusal(
            Option("preference", ",".join(map(str, given))),
            f": expected {len(tasks)} numbers from 0 on that are not all 0",
        )
    return {t: share / total for t, share in zip(tasks, given, strict=True)}


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """Some seeds in a row."""
    if count < 1:
        raise Refusal(Option("seeds", str(count)), ": expected at least 1")
    return tuple(range(first, first + count))


def identity(
    adapters: Adapters, files: Mapping[str, Any], stats: Folder | None
) -> dict[str, Any]:
    """Digests of all that was read, and versions."""
    digests = {role: entry["sha256"] for role, entry in files.items()}
    if stats is not None:
        digests["statistics"] = dict(open_statistics(stats).sha256)
    return {
        "adapters": {
            name: {"sha256": dict(source.sha256), "scales": dict(source.scales)}
            for name, source in zip(adapters.names, adapters.sources, strict=True)
        },
        "versions": {name: version(name) for name in ("jaxmerge", "jax")},
        "modules": list(adapters.stacks),
        **digests,
    }
