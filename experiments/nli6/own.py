"""Every adapter on the test pairs of its own task, against what PEFT measured.

    python -m experiments.nli6.own

Takes about 2 minutes on one CPU core and writes ``results/own.jsonl``, a line for each
task as it comes. The reference is ``metrics.json`` beside each adapter: the accuracy of
the model in torch with PEFT on the same pairs. Ends with exit code 1 where the two
differ by more than 0.3 points.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.nli6.suite import load_suite
from experiments.suite import Split, Suite, Task, batches
from jaxmerge.io import load_peft
from jaxmerge.models import with_updates
from jaxmerge.types import LowRank

RESULTS = Path(__file__).parent / "results" / "own.jsonl"
ROWS, BATCH = 2000, 64  # the references were measured on the first 2,000 test pairs
TOLERANCE = 0.3  # points

Features = Callable[[Any, dict[str, LowRank], Any], jax.Array]


def adapter_updates(folder: Path) -> dict[str, LowRank]:
    """One adapter as the low-rank update of every module, none of them multiplied."""
    stacks = load_peft([folder], heads="keep").stacks
    return {name: LowRank(b=stack.b[0], a=stack.a[0]) for name, stack in stacks.items()}


def features_with(suite: Suite) -> Features:
    """Compiled ``(params, updates, inputs) -> features``, shared by all adapters."""
    return jax.jit(
        lambda params, updates, inputs: with_updates(suite.apply, updates)(
            params, inputs
        )
    )


def accuracy(suite: Suite, task: Task, features: Features, split: Split) -> float:
    """Share of the split's pairs that the task's own adapter and head get right."""
    updates = adapter_updates(task.adapter)
    correct = 0
    for inputs, chosen in batches(suite, split, BATCH):
        logits = suite.logits(task.head, features(suite.params, updates, inputs))
        predicted = np.asarray(logits).argmax(axis=-1)
        correct += int((predicted == split.labels[chosen]).sum())
    return correct / len(split.labels)


def measure(suite: Suite, task: Task, features: Features) -> dict[str, Any]:
    """One line of ``results/own.jsonl``; ``seconds`` excludes tokenising."""
    whole = task.load("test")
    split = Split(*jax.tree.map(lambda x: x[:ROWS], tuple(whole)))
    start = time.perf_counter()
    ours = accuracy(suite, task, features, split)
    seconds = time.perf_counter() - start
    reference = json.loads((task.adapter / "metrics.json").read_text())["test_acc"]
    return {
        "task": task.name,
        "pairs": len(split.labels),
        "accuracy": ours,
        "reference": reference,
        "points_apart": round(100 * (ours - reference), 3),
        "seconds": round(seconds, 1),
    }


def main() -> int:
    suite = load_suite()
    features = features_with(suite)
    RESULTS.parent.mkdir(exist_ok=True)
    apart = []
    with RESULTS.open("w", encoding="utf-8") as file:
        for task in suite.tasks:
            result = measure(suite, task, features)
            print(json.dumps(result), flush=True)
            print(json.dumps(result), file=file, flush=True)
            if abs(result["points_apart"]) > TOLERANCE:
                apart.append(task.name)
    if apart:
        print(f"more than {TOLERANCE} points apart: {', '.join(apart)}")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
