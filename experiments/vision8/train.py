"""Makes the base, the heads and the adapters.

    python -m experiments.vision8.train
    python -m experiments.vision8.train --probes

Takes about 30 minutes on one CPU core (20 for the base, 1 for the heads, 9 for the
adapters, 1 to measure) and skips what exists; a run that was stopped continues where it
was. With ``--probes`` other adapters are trained as well, below linear probes of the
base in the place of the heads. Everything is drawn from one seed (0). ``metrics.json``
has the accuracies of the base with the heads and with linear probes, of each adapter,
and of the sum of all.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from experiments.evaluation import accuracies, make_exam, own_accuracies
from experiments.finetune import Recipe, finetune
from experiments.lora import Lora
from experiments.suite import Suite
from experiments.vision8.heads import fit_heads
from experiments.vision8.pretrain import pretrain, vary
from experiments.vision8.suite import (
    BASE,
    CONFIG,
    HEADS,
    METRICS,
    TRAINED,
    load_base,
    load_suite,
)
from jaxmerge.io import load_peft
from jaxmerge.models import save_vision
from jaxmerge.spec import parse

PRETRAINING_STEPS = 10_000
LORA = Lora(rank=16, alpha=32)
RECIPE = Recipe(steps=700, rate=2e-3, batch=64)
# Where an image moved by some pixels is as good as any other; elsewhere it did harm.
AUGMENT = dict.fromkeys(("cifar10", "rsscn7_satellite", "neu_surface_texture"), vary)
BASE_NAME = "experiments/vision8/trained/base"
SUM_SCALE = 0.3

report = partial(print, flush=True)
train = partial(
    finetune, lora=LORA, recipe=RECIPE, base=BASE_NAME, augment=AUGMENT, report=report
)


def retrain(folder: Path, seed: int) -> None:
    """Other adapters on the same base, with the same heads, unless they are there."""
    train(load_suite().with_adapters_in(folder), seed=seed)


def measure(suite: Suite, probes: Suite) -> dict[str, Any]:
    """Accuracies of the base, its probes, each adapter, and the sum of all adapters."""
    stacks = load_peft([task.adapter for task in suite.tasks]).stacks
    merged = parse(f"concat|scale({SUM_SCALE})").run(stacks)
    results = {task.name: {} for task in suite.tasks}
    for part in ("validation", "test"):
        exam = make_exam(suite, part)
        base, everything = accuracies(exam, {}), accuracies(exam, merged)
        probe = accuracies(make_exam(probes, part), {})
        own = own_accuracies(exam, stacks)
        for name in results:
            found = {
                "base": base[name],
                "probe": probe[name],
                "adapter": own[name],
                "sum": everything[name],
            }
            results[name][part] = {key: round(x, 4) for key, x in found.items()}
            report(f"{name}, {part}: {results[name][part]}")
    return results


def mean(tasks: dict[str, Any]) -> dict[str, Any]:
    """The same accuracies averaged over the tasks."""
    return jax.tree.map(lambda *x: round(sum(x) / len(x), 4), *tasks.values())


def main(
    out: Annotated[Path, typer.Option(help="folder for the weights")] = TRAINED,
    metrics: Annotated[Path, typer.Option(help="file for accuracies")] = METRICS,
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
    force: Annotated[bool, typer.Option(help="train adapters again")] = False,
    probes: Annotated[bool, typer.Option(help="adapters below probes too")] = False,
) -> None:
    """Pretrains the base, fits the heads, trains the adapters and measures them."""
    if not (out / BASE).is_dir():
        checkpoint = out / "pretraining.safetensors"
        params = pretrain(
            CONFIG, checkpoint, steps=PRETRAINING_STEPS, seed=seed, report=report
        )
        save_vision(out / f"{BASE}.new", CONFIG, params)
        (out / f"{BASE}.new").rename(out / BASE)
        checkpoint.unlink()
    if not (out / HEADS).is_file():
        fit_heads(load_base(out), out / HEADS, report=report)
    suite, probed = load_suite(out), load_suite(out, probes=True)
    for each in (suite, probed) if probes else (suite,):
        train(each, seed=seed, force=force)
    tasks = measure(suite, probed)
    content = {
        "seed": seed,
        "pretraining_steps": PRETRAINING_STEPS,
        "lora": vars(LORA) | {"scale": LORA.scale},
        "recipe": vars(RECIPE),
        "augmented": list(AUGMENT),
        "sum_scale": SUM_SCALE,
        "mean": mean(tasks),
        "tasks": tasks,
    }
    metrics.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
