"""Times a step that adapters teach against one by entropy, the answers being stored.

    taskset -c 1 python -m benchmarks.taught_step [--rounds 7]

The problem of `benchmarks.learning`: TARA-B of six adapters of MiniLM-L6's size, four
steps in one compiled call. Both run in turn on one core; processor time.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from benchmarks.learning import STEPS_PER_CALL, compile_all, steps
from benchmarks.problems import in_turn

SIDES = ("TARA-B", "TARA-B, taught")


def main() -> None:
    """Prints both sides and keeps them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    found = steps()
    ready, _ = compile_all({name: found[name] for name in SIDES})
    times = in_turn(*ready.values(), rounds=options.rounds) / STEPS_PER_CALL
    rows = [
        {
            "step": name,
            "seconds": seconds.round(4).tolist(),
            "to_entropy": float(np.median(seconds / times[0])),
            "jax": jax.__version__,
        }
        for name, seconds in zip(ready, times, strict=True)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (options.out / "taught_step.jsonl").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
