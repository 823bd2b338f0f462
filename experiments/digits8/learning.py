"""The merges of the demonstration that are learned, from images without labels.

Every method is fitted in the same few steps twice: taught by the own adapter of each
task, and by the entropy of the predictions as its paper does. Nothing is chosen with
labels: a fit begins at the scale at which its own loss is least.
"""

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import optax

import jaxmerge as jm
from experiments.digits8.model import Base, apply, head_logits
from experiments.digits8.tasks import TASKS
from jaxmerge.tasks.unlabeled import task_batches

STEPS = 100  # in the demonstration
RATE = 1e-2  # constant, by entropy
TAUGHT_RATE = 4e-2  # falls to 0 along a cosine; see `experiments.digits8.options`
BATCH = 16  # images of each task in a step
FIRST_BATCHES = 4  # from which the start is found

Images = Mapping[str, np.ndarray]


class LearnedMethod(NamedTuple):
    """One line of the table: what is learned, and what teaches it."""

    name: str
    pipeline: str
    taught: bool


LEARNED = tuple(
    LearnedMethod(f"{name}, {teacher}", pipeline, teacher == "taught")
    for teacher in ("taught", "entropy")
    for name, pipeline in (
        ("TARA-B", "tara_b"),
        ("TARA-A", "tara_a"),
        ("AdaMerging", "adamerging"),
    )
)


def learn(
    method: LearnedMethod,
    stacks: Mapping[str, jm.AdapterStack],
    base: Base,
    images: Images,
    *,
    seed: int,
    steps: int,
    optimizer: optax.GradientTransformation | None = None,
    batch: int = BATCH,
    temperature: float = 1.0,
) -> dict[str, jm.Update]:
    """Fits the coefficients of a method, and merges with them.

    Args:
      method: what is learned.
      stacks: of the eight adapters.
      base: the model.
      images: of every task, without labels.
      seed: of the batches.
      steps: of the optimiser.
      optimizer: Adam unless given; its rate falls along a cosine for taught methods.
      batch: images of each task in a step.
      temperature: of the predictions of teachers and merge.
    """
    if optimizer is None:
        falling = optax.cosine_decay_schedule(TAUGHT_RATE, steps)
        optimizer = optax.adam(falling if method.taught else RATE)
    tasks = tuple(TASKS)
    heads = {name: base.heads[task.head] for name, task in TASKS.items()}
    model = (apply, head_logits, heads)
    if method.taught:
        losses = jm.distillation(*model, temperature=temperature)
        asked = {"logits": head_logits, "heads": heads, "params": base.params}
        answers = jm.teacher_answers(apply, tasks, stacks, [images], **asked)
        inputs = {name: jm.Taught(images[name], answers[name]) for name in tasks}
    else:
        losses, inputs = jm.entropies(*model), images
    seeds = {name: (seed, index) for index, name in enumerate(tasks)}

    def batches(count: int | None = None) -> Iterator[Mapping[str, Any]]:
        return itertools.islice(task_batches(inputs, size=batch, seeds=seeds), count)

    problem: dict[str, Any] = {"params": base.params}
    few = partial(batches, FIRST_BATCHES)
    own = np.zeros(len(tasks), np.float32)  # no adapter differs from itself
    if not method.taught:
        own = jm.single_adapter_losses(tasks, stacks, losses, few(), **problem)
    problem["scalarise"] = partial(jm.smooth_tchebycheff, anchors=own)
    learned = jm.parse(method.pipeline).learnable()
    start = jm.search_start(learned, tasks, stacks, losses, few(), **problem)
    fitted = jm.fit(
        *(learned, tasks, stacks, losses, batches(), optimizer),
        steps=steps,
        steps_per_call=min(steps, 100),
        start=start.phis,
        **problem,
    )
    return fitted.updates
