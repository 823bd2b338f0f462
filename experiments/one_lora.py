"""One LoRA adapter for all tasks, all of whose factors are trained: a reference."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmerge as jm
from experiments.lora import Factors, Lora, initial_factors, lora_shapes, scaled
from jaxmerge.learning.step import Losses


def train_one_lora(
    losses: Losses,
    batches: Iterator[Mapping[str, Any]],
    lora: Lora,
    *,
    params: Any,
    rate: float,
    steps: int,
    seed: int,
    report: Callable[[int, Factors], None] | None = None,
    report_every: int = 25,
) -> Factors:
    """Trains one adapter for all tasks, from PEFT's start, by Adam.

    Args:
      losses: of every task, as `jaxmerge.fit` takes them; their mean falls.
      batches: as many as steps, or more.
      lora: rank, scale and target layers.
      params: of the base.
      rate: of Adam.
      steps: of the optimiser.
      seed: of the first A.
      report: called with the finished steps and the factors.
      report_every: steps in one compiled call.
    """
    shapes = lora_shapes(params, lora.targets)
    factors = initial_factors(shapes, lora.rank, jax.random.key(seed))
    optimizer = optax.adam(rate)

    def objective(factors: Factors, params: Any, batch: Any) -> jax.Array:
        found = losses(params, scaled(factors, lora), batch)
        return jnp.mean(jnp.stack(list(found.values())))

    @jax.jit
    def run(state: Any, params: Any, several: Any) -> Any:
        def step(state: Any, batch: Any) -> tuple[Any, None]:
            factors, moments = state
            change = jax.grad(objective)(factors, params, batch)
            change, moments = optimizer.update(change, moments, factors)
            return (optax.apply_updates(factors, change), moments), None

        return jax.lax.scan(step, state, several)[0]

    state = (factors, optimizer.init(factors))
    for done in range(0, steps, report_every):
        some = list(itertools.islice(batches, min(report_every, steps - done)))
        several = jax.tree.map(lambda *x: jnp.stack(x), *some)
        state = run(state, params, several)
        if report is not None:
            report(done + len(some), state[0])
    return state[0]


def save_factors(path: Path, factors: Factors) -> None:
    """Writes factors as arrays of NumPy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {
        f"{name}.{part}": value
        for name, update in factors.items()
        for part, value in update._asdict().items()
    }
    np.savez(path, **flat)


def load_factors(path: Path) -> Factors:
    """What `save_factors` was given."""
    found = dict(np.load(path))
    names = {key.rpartition(".")[0] for key in found}
    return {n: jm.LowRank(b=found[f"{n}.b"], a=found[f"{n}.a"]) for n in names}
