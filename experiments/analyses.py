"""What learned merges do beyond one table: unseen tasks, preferences, hyper-parameters.

    python -m experiments.analyses vision8

Needs the results of ``experiments.run`` for the chosen learning rates and appends to
``results/analyses.jsonl``, a line for each merged model; a run that was cut off goes on
where it stopped. Five analyses:

- unseen: two tasks are left out of the merge, and their heads tested on it;
- tradeoff: a front of preferences between two tasks;
- preferences: random preferences between all tasks;
- objective: the smoothing alpha, and ``|f - z|`` against ``f - z``;
- budget: steps and batch size.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxmerge as jm
from experiments.evaluation import accuracies
from experiments.methods import METHODS, Fitted, merged
from experiments.records import Records
from experiments.run import CONFIGS, Experiment, open_experiment
from jaxmerge.runtime import start_jax

LEARNED = {method.name: method for method in METHODS if isinstance(method, Fitted)}
TAUGHT = "TARA-B, taught"
COMPARED = ("AdaMerging, taught", "TARA-A, taught", TAUGHT)
WEIGHTS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the first of two tasks
RANDOM_PREFERENCES = 5
ALPHAS = (0.01, 0.1, 1.0, 10.0)
BATCHES = (4, 16, 64)

Updates = Mapping[str, jm.Update]


class Analysis:
    """Fits and measurements that all analyses share."""

    def __init__(self, experiment: Experiment, results: Path):
        self.experiment, self.records = experiment, Records(results)

    def fit(
        self,
        method: str,
        tasks: Sequence[str],
        *,
        preference: np.ndarray | None = None,
        **options: Any,
    ) -> jm.Fitted:
        """A fit on some of the tasks, with the start and the rate of the comparison.

        Args:
          method: name of a learned merge.
          tasks: names of the tasks.
          preference: see `jaxmerge.fit`.
          **options: of the recipe, in the place of those of the comparison.
        """
        experiment = self.experiment
        batch = options.pop("batch", None)
        recipe = LEARNED[method].recipe(experiment.chosen(method), **options)
        return experiment.learning.fit(
            recipe,
            experiment.start(LEARNED[method]),
            tasks=tasks,
            batch=batch,
            preference=preference,
            steps_per_call=25,
        )

    def test(
        self, updates: Updates, tasks: Sequence[str] | None, identity: dict[str, Any]
    ) -> None:
        """Measures one merged model and adds its row."""
        exam = self.experiment.exams["test"]
        accuracy = accuracies(exam, updates, None if tasks is None else tuple(tasks))
        self.records.add(**identity, accuracy=accuracy)
        score = self.experiment.normalised(accuracy, "test")
        print({**identity, "normalised": round(score, 4)}, flush=True)

    def fit_and_test(
        self, identity: dict[str, Any], tasks: Sequence[str], **options: Any
    ) -> None:
        """One fit and its row, unless the row is there."""
        if self.records.find(**identity) is None:
            started = time.perf_counter()
            updates = self.fit(identity["method"], tasks, **options).updates
            seconds = round(time.perf_counter() - started, 1)
            self.test(updates, tasks, {**identity, "seconds": seconds})

    def front_and_test(
        self, identity: dict[str, Any], tasks: Sequence[str], preferences: np.ndarray
    ) -> None:
        """A front in one fit, and a row for each of its members."""
        rows = [
            {**identity, "preference": [round(float(x), 4) for x in preference]}
            for preference in preferences
        ]
        if all(self.records.find(**row) for row in rows):
            return
        front = self.fit(identity["method"], tasks, preference=preferences)
        for index, row in enumerate(rows):
            if self.records.find(**row) is None:
                member = jax.tree.map(lambda x, i=index: x[i], front.updates)
                self.test(member, tasks, row)


def unseen(analysis: Analysis) -> None:
    """Merges without two tasks, tested on these two."""
    tasks = analysis.experiment.tasks
    for first in range(0, len(tasks) - 1, 2):
        left_out = tasks[first : first + 2]
        seen = [task for task in tasks if task not in left_out]
        for method in ("Base", "Task arithmetic", "KnOTS-TIES", *COMPARED):
            identity = {"analysis": "unseen", "method": method, "tasks": list(left_out)}
            if analysis.records.find(**identity) is not None:
                continue
            if method == "Base":
                updates = {}
            elif method in LEARNED:
                updates = analysis.fit(method, seen).updates
            else:
                pipeline = analysis.experiment.chosen(method)["pipeline"]
                stacks = analysis.experiment.learning.stacks_of(seen)
                updates = merged(stacks, pipeline, 0)
            analysis.test(updates, left_out, identity)


def tradeoff(analysis: Analysis) -> None:
    """Fronts between two tasks."""
    tasks = analysis.experiment.tasks
    preferences = np.array([[w, 1 - w] for w in WEIGHTS], np.float32)
    for pair in (tasks[:2], tasks[2:4]):
        for method in COMPARED:
            identity = {"analysis": "tradeoff", "method": method, "tasks": list(pair)}
            analysis.front_and_test(identity, pair, preferences)


def preferences(analysis: Analysis) -> None:
    """Random preferences between all tasks, uniform in the simplex."""
    tasks = analysis.experiment.tasks
    rng = np.random.default_rng(0)
    drawn = rng.dirichlet(np.ones(len(tasks)), RANDOM_PREFERENCES).astype(np.float32)
    for method, preference in product(COMPARED, drawn):
        identity = {"analysis": "preferences", "method": method}
        analysis.front_and_test(identity, tasks, preference[None])


def objective(analysis: Analysis) -> None:
    """The smoothing alpha in both forms of the gap."""
    tasks = analysis.experiment.tasks
    for absolute, alpha in product((False, True), ALPHAS):
        form = {"alpha": alpha, "absolute": absolute}
        identity = {"analysis": "objective", "method": TAUGHT, **form}
        chosen = "tchebycheff-absolute" if absolute else "tchebycheff"
        analysis.fit_and_test(identity, tasks, alpha=alpha, objective=chosen)


def budget(analysis: Analysis) -> None:
    """Steps and batch size."""
    longest, tasks = analysis.experiment.settings.longest_fit, analysis.experiment.tasks
    for batch, steps in product(BATCHES, (longest // 4, longest)):
        size = {"batch": batch, "steps": steps}
        identity = {"analysis": "budget", "method": TAUGHT, **size}
        analysis.fit_and_test(identity, tasks, **size)


ANALYSES: dict[str, Callable[[Analysis], None]] = {
    function.__name__: function
    for function in (unseen, tradeoff, preferences, objective, budget)
}


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(CONFIGS)}")],
    only: Annotated[list[str] | None, typer.Option(help="an analysis; repeat")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the comparison")] = None,
) -> None:
    """Runs the analyses, or what is left of them."""
    start_jax()
    experiment = open_experiment(name, out)
    results = experiment.records.path.with_name("analyses.jsonl")
    for chosen in only or ANALYSES:
        ANALYSES[chosen](Analysis(experiment, results))


if __name__ == "__main__":
    typer.run(main)
