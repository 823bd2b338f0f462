"""Seconds per module of a baseline: ``python -m benchmarks.baselines NAME COUNT``."""

import json
import sys

from benchmarks.dense import ROUTES
from benchmarks.problems import RANK, TASKS, WIDTH, clock, factors


def time_dense(name: str, modules: int) -> list[float]:
    """One of the dense routes in numpy."""
    b, a = factors(modules)
    return [
        clock(lambda i=i: ROUTES[name](b[i], a[i]), repeats=1)[0]
        for i in range(modules)
    ]


def time_peft(modules: int) -> list[float]:
    """``add_weighted_adapter(combination_type="svd")`` of PEFT on the same adapters."""
    import peft
    import torch

    torch.manual_seed(0)
    model = torch.nn.Module()
    for index in range(modules):
        model.add_module(f"q{index}", torch.nn.Linear(WIDTH, WIDTH, bias=False))
    names = [f"task{t}" for t in range(TASKS)]
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        target_modules=[f"q{index}" for index in range(modules)],
        init_lora_weights=False,
    )
    model = peft.PeftModel(model, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)

    def run():
        model.add_weighted_adapter(
            names,
            [1.0] * TASKS,
            "merged",
            combination_type="svd",
            svd_rank=RANK,
            svd_full_matrices=False,
        )

    (seconds,) = clock(run, repeats=1)
    return [seconds / modules] * modules


if __name__ == "__main__":
    method, count = sys.argv[1], int(sys.argv[2])
    timings = time_peft(count) if method == "peft_svd" else time_dense(method, count)
    print(json.dumps(timings))
