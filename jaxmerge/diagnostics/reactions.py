"""How the losses of all tasks react to the directions of their adapters (TARA)."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge import linalg
from jaxmerge.diagnostics import (
    TaskJacobian,
    TaskRows,
    jacobian_rows,
    mean_jacobian,
    misalignment,
    sensitivity,
)
from jaxmerge.io import Adapters
from jaxmerge.learning import entropies, single_adapter_losses
from jaxmerge.learning.coefficients import tara_a
from jaxmerge.learning.entropies import token_entropies
from jaxmerge.learning.objectives import smooth_tchebycheff
from jaxmerge.learning.step import batches_by_task
from jaxmerge.models.decoder import LM_HEAD
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.next_tokens import counted_tokens
from jaxmerge.tasks.unlabeled import Unlabeled

UNIFORM = "all alike"


class Reactions(NamedTuple):
    """The task-direction Jacobian J [T, D] at one point, and what follows from it.

    P = T + 1 preferences: all weight on one task, in the order of the tasks, and equal
    weights.

    Attributes:
      tasks: names of the tasks.
      initial: the coefficient of every direction.
      inputs: task -> different inputs over which its loss is a mean.
      wanted: number of inputs of each task that was asked for.
      losses: f [T], the entropies of the merged model, in nats.
      anchors: z [T], the same with the task's own adapter alone.
      slopes: [T], norms of the rows of J: how fast a loss can change with phi.
      singular_values: of J, [min(T, D)].
      rank: number of singular values above rounding noise.
      sensitivities: ``h(rho)`` [P, D].
      misalignment: ``xi`` between every two preferences, [P, P].
      repeat: ``xi`` between one half of the batches and the other under the same
        preference, [P]: what chance alone gives, with half of the inputs. nan where a
        task that matters has one batch, and so no halves.
      modules: module -> where its directions are among the D.
    """

    tasks: tuple[str, ...]
    initial: float
    inputs: dict[str, int]
    wanted: int
    losses: np.ndarray
    anchors: np.ndarray
    slopes: np.ndarray
    singular_values: np.ndarray
    rank: int
    sensitivities: np.ndarray
    misalignment: np.ndarray
    repeat: np.ndarray
    modules: dict[str, slice]

    @property
    def preferences(self) -> tuple[str, ...]:
        """Names of the P preferences: of the one task, or `UNIFORM`."""
        return (*self.tasks, UNIFORM)

    @property
    def condition(self) -> float:
        """kappa of J; infinite where its rank is below T."""
        if self.rank < len(self.tasks):
            return float("inf")
        return float(self.singular_values[0] / self.singular_values[-1])

    @property
    def reacting(self) -> np.ndarray:
        """Numbers of the tasks whose loss reacts at all; the others have no xi."""
        return np.flatnonzero(self.sizes[: len(self.tasks)])

    @property
    def mean_misalignment(self) -> float:
        """Mean of xi over the pairs of tasks that react; nan for fewer than two."""
        chosen = self.misalignment[np.ix_(self.reacting, self.reacting)]
        pairs = chosen[np.triu_indices(len(chosen), 1)]
        return float(pairs.mean()) if pairs.size else float("nan")

    @property
    def mean_repeat(self) -> float:
        """Mean of `repeat` over the tasks that react and have two halves."""
        found = self.repeat[self.reacting]
        found = found[np.isfinite(found)]
        return float(found.mean()) if found.size else float("nan")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the inputs."""
        return tuple(
            f"{task} has too few inputs: {count} instead of {self.wanted}"
            + (", without halves to compare" if np.isnan(repeat) else "")
            for (task, count), repeat in zip(
                self.inputs.items(), self.repeat[: len(self.tasks)], strict=True
            )
            if count < self.wanted
        )

    @property
    def sizes(self) -> np.ndarray:
        """Norms of the sensitivities, [P]."""
        return np.linalg.norm(self.sensitivities, axis=1)

    @property
    def shares(self) -> np.ndarray:
        """Parts of ``sum_k |h_k|``, the largest first, [P, D]; rows of zeros stay."""
        sizes = np.sort(np.abs(self.sensitivities), axis=1)[:, ::-1]
        total = sizes.sum(axis=1, keepdims=True)
        return sizes / np.where(total > 0, total, 1)

    @property
    def top_tenth(self) -> np.ndarray:
        """h_k |h_k|`` the part in the tenth of the directions that matter most.

        [P]. A tenth is D/10 rounded up, see `tenth`.
        """
        return self.shares[:, : self.tenth].sum(axis=1)

    @property
    def tenth(self) -> int:
        """D/10 rounded up: `top_tenth` is ``tenth / D`` if all directions are alike."""
        return -(-self.sensitivities.shape[1] // 10)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, null for what is infinite or was not measured.

        Of the sensitivities it holds the norm in each module.
        """
        preferences = self.preferences
        return {
            "method": "tara_a",
            "initial": self.initial,
            "inputs": self.inputs,
            "notes": list(self.notes),
            "rank": self.rank,
            "condition": self.condition if self.rank == len(self.tasks) else None,
            "singular_values": self.singular_values.tolist(),
            "tasks": {
                task: {"entropy": float(f), "alone": float(z), "slope": float(slope)}
                for task, f, z, slope in zip(
                    *(self.tasks, self.losses, self.anchors, self.slopes), strict=True
                )
            },
            "preferences": list(preferences),
            "sensitivity": dict(zip(preferences, self.sizes.tolist(), strict=True)),
            "largest_tenth": dict(
                zip(preferences, self.top_tenth.tolist(), strict=True)
            ),
            "misalignment": self.misalignment.tolist(),
            "repeat": {
                name: None if np.isnan(xi) else float(xi)
                for name, xi in zip(preferences, self.repeat, strict=True)
            },
            "modules": {
                module: np.linalg.norm(self.sensitivities[:, place], axis=1).tolist()
                for module, place in self.modules.items()
            },
        }


def reactions(
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    *,
    batch: int = 16,
    batches: int = 8,
    logit_scale: float = 1.0,
    initial: float = 0.4,
) -> Reactions:
    """Measures J where a fit of TARA-A begins, on the inputs with which it begins.

    Every input counts once: a task with fewer than ``batch * batches`` has fewer or
    smaller batches. The objective is the smooth Tchebycheff one (alpha 1) with the
    losses of the single adapters as anchors, as in `learn`.

    Args:
      base: the model.
      adapters: T adapters of it.
      heads: task -> head, see `task_heads`.
      unlabeled: inputs of every task.
      batch: inputs of each task that go through the model at a time.
      batches: how many of them.
      logit_scale: multiplies the logits before the softmax.
      initial: every coefficient.

    Raises:
      ValueError: numbers that are not finite.
    """
    tasks, learned = adapters.names, tara_a(initial=initial)
    losses = entropies(base.apply, base.logits, heads, logit_scale=logit_scale)
    if base.vocabulary is not None:
        model = base.apply, base.vocabulary
        losses = token_entropies(*model, head=LM_HEAD, mask=counted_tokens)
    seen = one_pass(unlabeled, batch, batches)
    own = {"params": base.params}
    anchors = single_adapter_losses(tasks, adapters.stacks, losses, seen, **own)
    of_tasks = jacobian_rows(learned, tasks, adapters.stacks, losses, seen, **own)
    rows = [of_tasks[task] for task in tasks]
    jacobian = mean_jacobian(rows)
    if not jnp.isfinite(jacobian.matrix).all():
        task = tasks[int(jnp.isfinite(jacobian.matrix).all(axis=1).argmin())]
        raise ValueError(
            f"{base.folder}: the derivatives of the loss of {task} are not finite; "
            "look for weights that are far too large"
        )
    h = _sensitivities(jacobian, anchors)
    singular_values = linalg.svd(jacobian.matrix)[1]
    apart = jax.vmap(jax.vmap(misalignment, (None, 0)), (0, None))(h, h)
    return Reactions(
        tasks=tasks,
        initial=initial,
        inputs={
            task: sum(len(jax.tree.leaves(some)[0]) for some in of_task)
            for task, of_task in batches_by_task(tasks, seen).items()
        },
        wanted=batch * batches,
        losses=_numbers(jacobian.losses),
        anchors=_numbers(anchors),
        slopes=np.linalg.norm(_numbers(jacobian.matrix), axis=1),
        singular_values=_numbers(singular_values),
        rank=int(linalg.nonzero_directions(singular_values).sum()),
        sensitivities=_numbers(h),
        misalignment=_numbers(apart),
        repeat=_repeat(rows, anchors),
        modules=_places(adapters),
    )


def one_pass(unlabeled: Unlabeled, batch: int, batches: int) -> list[dict[str, Any]]:
    """Batches in which no input comes twice; those of one task are of one size.

    Of a short file that leaves out the fewest inputs; two batches, if there are two
    inputs, as there are no halves without.
    """
    found: list[dict[str, Any]] = [{} for _ in range(batches)]
    for task, inputs in unlabeled.inputs.items():
        count = unlabeled.count(task)
        numbers = range(min(2, batches, count), min(batches, count) + 1)
        sizes = {number: min(batch, count // number) for number in numbers}
        number = max(sizes, key=lambda n, sizes=sizes: (n * sizes[n], -n))
        alone = unlabeled._replace(inputs={task: inputs})
        stream = alone.batches(size=sizes[number], seed=0)
        for place, some in enumerate(itertools.islice(stream, number)):
            found[place] |= some
    return found


def _repeat(rows: Sequence[TaskRows], anchors: jax.Array) -> np.ndarray:
    """xi [P] between the means of every second batch and of the others."""
    has_halves = np.array([len(of_task.losses) > 1 for of_task in rows])
    halves = [
        mean_jacobian(
            [
                jax.tree.map(lambda x, s=start: x[s::2], of_task) if whole else of_task
                for of_task, whole in zip(rows, has_halves, strict=True)
            ]
        )
        for start in (0, 1)
    ]
    found = jax.vmap(misalignment)(*(_sensitivities(j, anchors) for j in halves))
    return np.where([*has_halves, has_halves.all()], _numbers(found), np.nan)


def _sensitivities(jacobian: TaskJacobian, anchors: jax.Array) -> jax.Array:
    """h [P, D] for each task alone and for all alike."""
    count = len(jacobian.losses)
    preferences = np.vstack([np.eye(count), np.full(count, 1 / count)])
    scalarise = partial(smooth_tchebycheff, anchors=anchors)
    return jnp.stack(
        [sensitivity(jacobian, preference=p, scalarise=scalarise) for p in preferences]
    )


def _places(adapters: Adapters) -> dict[str, slice]:
    """Directions of each module, in the sorted order of `task_jacobian`."""
    places, start = {}, 0
    for module, stack in sorted(adapters.stacks.items()):
        places[module] = slice(start, start + sum(stack.ranks))
        start = places[module].stop
    return places


def _numbers(values: jax.Array | np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64)
