"""Do adapters that start as OSRM says merge better? (arXiv 2505.22934)

    python -m experiments.osrm vision8
    python -m experiments.osrm nli6

For every start and seed an adapter of each task is trained, alike in everything but the
first A, and the adapters are merged. The scale of every merge is chosen on validation
with the adapters of the first seed; task arithmetic is measured there at all scales for
all seeds. Each result is appended to ``experiments/<name>/results/osrm.jsonl`` as it
comes, and a run that was cut off goes on where it stopped; adapters are kept in
``experiments/<name>/work/osrm``. ``python -m experiments.report_osrm`` makes the table.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer

import jaxmerge as jm
from experiments.evaluation import accuracies, make_exams, own_accuracies
from experiments.finetune import finetune
from experiments.lora import lora_shapes
from experiments.methods import BY_NAME, ClosedForm, candidates, merged
from experiments.records import Records
from experiments.settings import Settings
from experiments.unlabeled import input_statistics
from jaxmerge.io import load_peft
from jaxmerge.runtime import start_jax
from jaxmerge.stats.moments import Moments, stack_moments, times_gram
from jaxmerge.stats.osrm import osrm_init

HERE = Path(__file__).parent
FIRST_SEED = 0
CURVE = "Task arithmetic"  # measured at all scales for all seeds
MERGES = (
    CURVE,
    "TIES",
    "TSV-M",
    "Pico + task arithmetic",
    "Pico + TSV-M",
)


class Start(NamedTuple):
    """Where training starts.

    Attributes:
      name: of the start.
      samples: training examples of each other task whose inputs A avoids; None for
        PEFT's random A.
      own: whether A also prefers inputs of its own task, among the quarter of all
        directions in which the others have the least.
      seeds: of the training.
      merges: what is done with the adapters.
    """

    name: str
    samples: int | None
    own: bool = False
    seeds: Sequence[int] = (0, 1, 2)
    merges: Sequence[str] = MERGES


STARTS = (
    Start("Kaiming", None),
    Start("OSRM", 100),
    Start("OSRM, 10 samples", 10, seeds=(0,), merges=(CURVE, "TSV-M")),
    Start("OSRM, 1000 samples", 1000, seeds=(0,), merges=(CURVE, "TSV-M")),
    Start("OSRM, own energy", 100, own=True, seeds=(0,), merges=(CURVE, "TSV-M")),
)

Stacks = Mapping[str, jm.AdapterStack]
TaskMoments = Mapping[str, Mapping[str, Moments]]  # task -> module -> moments


class Study:
    """The starts of one experiment, and the results so far."""

    def __init__(self, settings: Settings, results: Path, work: Path):
        if settings.training is None:
            raise ValueError("this experiment does not train its adapters")
        self.settings, self.training, self.work = settings, settings.training, work
        self.records = Records(results / "osrm.jsonl")
        self.suite = (self.training.load or settings.load)()
        self.shapes = lora_shapes(self.suite.base.params, self.training.lora.targets)
        sizes = {"validation": self.training.validation, "test": self.training.test}
        self.exams = make_exams(self.suite, sizes, settings.batch)
        self.moments = cache(self._moments)

    def run(self, start: Start, seed: int) -> None:
        """Trains and measures one set of adapters, unless that is done."""
        folder = self.work / start.name.replace(", ", "-").replace(" ", "_") / str(seed)
        suite = self.suite.with_adapters_in(folder)
        first = None
        if start.samples is not None:
            first = self.first_a(start)
        finetune(
            suite,
            self.training.lora,
            self.training.recipe,
            base=suite.name,
            seed=seed,
            initial_a=first,
            augment=self.training.augment,
            report=lambda line: print(f"{start.name}, seed {seed}: {line}", flush=True),
        )
        stacks = load_peft([task.adapter for task in suite.tasks]).stacks
        identity = {"start": start.name, "seed": seed}
        self._measure_own(stacks, identity)
        self._measure_leakage(stacks, first, identity)
        for name in start.merges:
            self._measure_merge(stacks, BY_NAME[name], identity)

    def first_a(self, start: Start) -> dict[str, dict[str, jax.Array]]:
        """task -> module -> A [r, n] of an OSRM start."""
        moments = self.moments(start.samples)
        found = {}
        for task in moments:
            others = stack_moments([moments[name] for name in moments if name != task])
            found[task] = {}
            for module, (_, n) in self.shapes.items():
                of_own = {"own": moments[task][module], "subspace": n // 4}
                found[task][module] = osrm_init(
                    others[module],
                    rank=self.training.lora.rank,
                    **(of_own if start.own else {}),
                )
        return found

    def _moments(self, samples: int) -> TaskMoments:
        """Of the inputs of all modules in the base model, on training examples."""
        inputs = {}
        for index, task in enumerate(self.suite.tasks):
            split = task.load("train")
            rng = np.random.default_rng((FIRST_SEED, index))
            some = rng.permutation(len(split.labels))[:samples]
            inputs[task.name] = jax.tree.map(lambda x, rows=some: x[rows], split.inputs)
        return input_statistics(self.suite, inputs, self.shapes, size=50)

    def _measure_own(self, stacks: Any, identity: dict[str, Any]) -> None:
        for part, exam in self.exams.items():
            row = {"kind": "own", **identity, "part": part}
            if self.records.find(**row) is None:
                own = own_accuracies(exam, stacks)
                self.records.add(**row, accuracy=own)
                print(row, f"{_mean(own):.4f}", flush=True)

    def leakage(self, stacks: Stacks) -> np.ndarray:
        """`leakage` on 100 training examples of each task."""
        tasks = [task.name for task in self.suite.tasks]
        return leakage(tasks, stacks, self.moments(100))

    def _measure_leakage(
        self, stacks: Stacks, first: Any, identity: dict[str, Any]
    ) -> None:
        """What the adapters do to inputs of other tasks, which A was to avoid."""
        seen = {"leakage": stacks, "leakage of A": _rows_alone(stacks)}
        if first is not None:
            tasks = [task.name for task in self.suite.tasks]
            seen["leakage of the first A"] = {
                module: jm.stack_adapters(
                    [(np.eye(len(first[t][module])), first[t][module]) for t in tasks]
                )
                for module in self.shapes
            }
        for kind, stacks in seen.items():
            row = {"kind": kind, **identity}
            if self.records.find(**row) is None:
                values = self.leakage(stacks)
                self.records.add(**row, values=values.tolist())

    def _measure_merge(
        self, stacks: Any, method: ClosedForm, identity: dict[str, Any]
    ) -> None:
        tried = candidates(method, self.settings)
        if identity["seed"] == FIRST_SEED or method.name == CURVE:
            for candidate in tried:
                self._measured(stacks, method, candidate, identity, "validation")
        first = {**identity, "seed": FIRST_SEED}
        scores = [
            _mean(self._row(method, candidate, first, "validation")["accuracy"])
            for candidate in tried
        ]
        best = tried[int(np.argmax(scores))]
        self._measured(stacks, method, best, identity, "test")

    def _row(self, method, candidate, identity, part) -> dict[str, Any] | None:
        what = {"method": method.name, **candidate, "part": part}
        return self.records.find(kind="merge", **identity, **what)

    def _measured(self, stacks, method, candidate, identity, part) -> None:
        if self._row(method, candidate, identity, part) is None:
            updates = merged(stacks, candidate["pipeline"], identity["seed"])
            found = accuracies(self.exams[part], updates)
            what = {"method": method.name, **candidate, "part": part}
            self.records.add(kind="merge", **identity, **what, accuracy=found)
            print({**identity, **what}, f"{_mean(found):.4f}", flush=True)


def leakage(tasks: Sequence[str], stacks: Stacks, moments: TaskMoments) -> np.ndarray:
    """How strongly the adapter of a task changes outputs on inputs of another.

    Returns:
      [T, T], root mean square of ``D_t z`` over modules, and inputs z of task s in the
      base model, in the row of t and the column of s.
    """
    squares = np.zeros((len(tasks), len(tasks)))
    for (t, _), (s, task) in product(enumerate(tasks), enumerate(tasks)):
        for module, stack in stacks.items():
            b, a = stack.b[t], stack.a[t]
            seen = times_gram(a, moments[task][module]) @ a.T
            squares[t, s] += float(jnp.sum((b.T @ b) * seen))
    return np.sqrt(squares / len(stacks))


def _rows_alone(stacks: Stacks) -> dict[str, jm.AdapterStack]:
    """The same A with orthonormal B, which change outputs as much as A lets through."""
    return {
        module: jm.stack_adapters([(np.eye(a.shape[0]), a) for a in stack.a])
        for module, stack in stacks.items()
    }


def _mean(accuracy: Mapping[str, float]) -> float:
    return float(np.mean(list(accuracy.values())))


def main(
    name: Annotated[str, typer.Argument(help="nli6 or vision8")],
    only: Annotated[list[str] | None, typer.Option(help="a start; repeat")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for results, work")] = None,
) -> None:
    """Runs the experiment, or what is left of it."""
    start_jax()
    settings = import_module(f"experiments.configs.{name}").get_config()
    folder = HERE / name if out is None else out
    study = Study(settings, folder / "results", folder / "work" / "osrm")
    pairs = [(start, seed) for start in STARTS for seed in start.seeds]
    # one seed of every start compared, then the next, then the variations
    for start, seed in sorted(
        pairs, key=lambda pair: (len(pair[0].seeds) == 1, pair[1])
    ):
        if not only or start.name in only:
            study.run(start, seed)


if __name__ == "__main__":
    typer.run(main)
