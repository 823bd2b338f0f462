"""Trains the adapter of the one task that comes without.

    python -m experiments.nli6.train

About 10 minutes on one CPU core: a linear probe of the base is the classifier, a LoRA
adapter of rank 16 is trained below it. ``trained/mrpc`` is a PEFT folder; ``mrpc.json``
has its accuracy, that of the probe, and the share of the most frequent class.
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import typer

from experiments.evaluation import accuracies, make_exam
from experiments.finetune import Recipe, finetune, train_adapter
from experiments.heads import fit_probe
from experiments.lora import Lora, save_adapter, scaled
from experiments.nli6.data import minilm_folder
from experiments.nli6.suite import HERE, LENGTH, OWN, TRAINED, load_suite
from experiments.suite import Split, Suite, Task, narrow, shared_folder
from experiments.text_pairs import read_pairs
from jaxmerge.runtime import start_jax
from jaxmerge.tasks import Base, load_base
from jaxmerge.tasks.batching import outputs_of

BASE_NAME = "sentence-transformers/all-MiniLM-L6-v2"
LINEAR = ("query", "key", "value", "output.dense", "intermediate.dense")
LORA = Lora(rank=16, alpha=32, targets=LINEAR)
RECIPE = Recipe(steps=600, rate=5e-4, batch=16)
BATCH = 64


def retrain(folder: Path, seed: int) -> None:
    """Other adapters of all tasks below the same classifiers, unless they are there."""
    suite, report = load_suite().with_adapters_in(folder), partial(print, flush=True)
    finetune(suite, LORA, RECIPE, base=BASE_NAME, seed=seed, report=report)


def features_of(base: Base, split: Split) -> np.ndarray:
    """Features [N, d] of the base without any adapter."""
    run = partial(base.apply, base.params)
    return outputs_of(base, split.inputs, BATCH, run, crop=narrow)


def measured(suite: Suite, updates: Any) -> dict[str, float]:
    return {
        part: accuracies(make_exam(suite, part, batch=BATCH), updates)[OWN]
        for part in ("validation", "test")
    }


def main() -> None:
    """Trains and measures the adapter, unless it is there."""
    start_jax()
    if (TRAINED / OWN).is_dir():
        typer.echo(f"{TRAINED / OWN}: exists, kept")
        return
    base = load_base(minilm_folder())
    texts = shared_folder() / "data" / "text" / OWN
    parts = {
        part: read_pairs(base, texts, part, length=LENGTH)
        for part in ("train", "validation", "test")
    }
    fitted = [(features_of(base, parts[p]), parts[p].labels) for p in list(parts)[:2]]
    kernel, bias, _ = fit_probe(*fitted)
    head = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    task = Task(OWN, TRAINED / OWN, head, parts.__getitem__)
    suite = Suite("nli6", base, (task,))
    began = time.perf_counter()

    def tell(done: int, loss: float) -> None:
        passed = time.perf_counter() - began
        typer.echo(f"{done} of {RECIPE.steps}, loss {loss:.4f}, {passed:.0f} s")

    factors = train_adapter(suite, task, LORA, RECIPE, report=tell)
    found = {
        "most frequent class": float(np.bincount(parts["test"].labels).max())
        / len(parts["test"].labels),
        "probe": measured(suite, {}),
        "adapter": measured(suite, scaled(factors, LORA)),
        "lora": vars(LORA) | {"scale": LORA.scale},
        "recipe": vars(RECIPE),
    }
    save_adapter(TRAINED / OWN, factors, LORA, base=BASE_NAME, classifier=head)
    (HERE / f"{OWN}.json").write_text(json.dumps(found, indent=2) + "\n")
    typer.echo(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)
