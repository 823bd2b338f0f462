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
from pathlib import Path

from experiments.evaluation import accuracies, make_exam
from experiments.nli6.suite import load_given
from jaxmerge.io import load_peft
from jaxmerge.stacks import task_updates

RESULTS = Path(__file__).parent / "results" / "own.jsonl"
ROWS = 2000  # the references were measured on the first 2,000 test pairs
TOLERANCE = 0.3  # points


def main() -> int:
    suite = load_given()
    stacks = load_peft([task.adapter for task in suite.tasks], heads="keep").stacks
    exam = make_exam(suite, "test", rows=ROWS)
    RESULTS.parent.mkdir(exist_ok=True)
    apart = []
    with RESULTS.open("w", encoding="utf-8") as file:
        for index, task in enumerate(suite.tasks):
            start = time.perf_counter()
            updates = task_updates(stacks, index)
            accuracy = accuracies(exam, updates, (task.name,))[task.name]
            seconds = time.perf_counter() - start
            measured = json.loads((task.adapter / "metrics.json").read_text())
            points = 100 * (accuracy - measured["test_acc"])
            result = {
                "task": task.name,
                "pairs": len(exam.splits[task.name].labels),
                "accuracy": accuracy,
                "reference": measured["test_acc"],
                "points_apart": round(points, 3),
                "seconds": round(seconds, 1),
            }
            print(json.dumps(result), flush=True)
            print(json.dumps(result), file=file, flush=True)
            if abs(points) > TOLERANCE:
                apart.append(task.name)
    if apart:
        print(f"more than {TOLERANCE} points apart: {', '.join(apart)}")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
