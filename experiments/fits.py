"""Fits to the inputs of one part of the data, and what they leave in a folder."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import jaxmerge as jm
from experiments.learning import Learning
from experiments.lora import Factors, scaled
from experiments.methods import LOOKS, Fitted, Trained
from experiments.one_lora import load_factors, save_factors
from experiments.records import Records


@dataclass(frozen=True)
class Fits:
    """Merges that are learned from the inputs of one part.

    Attributes:
      learning: the inputs.
      records: takes seconds and losses of every fit.
      work: folder for coefficients and factors after some steps, and for checkpoints.
      start: the scale of all coefficients at which a fit begins.
      stats: statistics of the inputs of the part where a method needs them, else None.
    """

    learning: Learning
    records: Records
    work: Path
    start: Callable[[Fitted], float]
    stats: Callable[[Fitted], Any]

    def merge(
        self, method: Fitted | Trained, candidate: dict[str, Any], seed: int
    ) -> dict[str, jm.Update]:
        """The merge of a candidate, from its folder if the fit came that far before."""
        name = f"{method.name}, rate {candidate['rate']}, seed {seed}"
        folder = self.work / name.replace(", ", "-").replace(" ", "_")
        path = folder / f"{candidate['steps']}.npz"
        if isinstance(method, Trained):
            if not path.is_file():
                self._train(method, candidate, seed, folder)
            return scaled(load_factors(path), self.learning.settings.reference)
        if not path.is_file():
            self._fit(method, candidate, seed, folder)
        learned = method.recipe(candidate).learned
        merger = jm.apply_learned(learned, dict(np.load(path)))
        return merger(self.learning.adapters.stacks, stats=self.stats(method))

    @property
    def _steps_between(self) -> int:
        return self.learning.settings.longest_fit // LOOKS // 2

    def _train(self, method: Trained, candidate: Any, seed: int, folder: Path) -> None:
        """One adapter for all tasks."""

        def keep(step: int, factors: Factors) -> None:
            save_factors(folder / f"{step}.npz", factors)

        self.learning.train(
            method.loss,
            rate=candidate["rate"],
            steps=candidate["steps"],
            seed=seed,
            report=keep,
            report_every=self._steps_between,
        )

    def _fit(self, method: Fitted, candidate: Any, seed: int, folder: Path) -> None:
        """The longest fit of the rate, of which shorter ones are a part.

        Where the rate falls, it does so over the steps of the longest.
        """
        longest = max(method.steps, default=self.learning.settings.longest_fit)
        candidate = candidate | {"steps": longest}
        folder.mkdir(parents=True, exist_ok=True)

        def keep(progress: jm.Progress) -> None:
            np.savez(folder / f"{progress.step}.npz", **progress.phis)
            value = progress.history.objective[-1]
            print(f"{folder.name}: step {progress.step}, {value:.4f}", flush=True)

        started = time.perf_counter()
        fitted = self.learning.fit(
            method.recipe(candidate, seed=seed),
            self.start(method),
            steps_per_call=self._steps_between,
            checkpoint=folder / "checkpoints",
            report=keep,
            stats=self.stats(method),
        )
        self.records.add(
            kind="fit",
            method=method.name,
            candidate=candidate,
            seed=seed,
            inputs=self.learning.part,
            seconds=time.perf_counter() - started,
            objective=fitted.history.objective.tolist(),
            losses=fitted.history.losses.tolist(),
        )
