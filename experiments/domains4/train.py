"""Trains the adapters, and measures each beside the base.

    python -m experiments.domains4.base --out experiments/domains4/trained/base
    python -m experiments.domains4.train

About 50 minutes on one CPU core, 10 s a step; with ``--only`` the domains can be spread
over cores. A domain that has its adapter is skipped, and a run that was stopped goes on
where it was. ``metrics.json``, written once every domain has its adapter, has nats per
token of base and adapter on the validation and test texts.
"""

import json
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import jax
import typer

from experiments.domains4.data import LINEAR, QUERY_VALUE, Place
from experiments.domains4.problem import completion_losses
from experiments.finetune import Recipe, fit
from experiments.lora import (
    CONFIG,
    Factors,
    Lora,
    initial_factors,
    lora_shapes,
    save_adapter,
    scaled,
)
from jaxmerge.diagnostics.likelihood import likelihoods, texts_alone
from jaxmerge.io import load_peft
from jaxmerge.runtime import start_jax
from jaxmerge.tasks import Base, load_base, load_unlabeled
from jaxmerge.tasks.next_tokens import NEXT

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
RECIPE = Recipe(steps=60, rate=2e-3, batch=8)
BATCH = 8  # texts in one batch of a measurement
CHUNK = 5  # steps between two lines of progress

report = partial(print, flush=True)


def completion_loss(base: Base, lora: Lora) -> Callable[..., jax.Array]:
    """Nats per token that counts, of the base with LoRA factors.

    Args:
      base: a causal language model.
      lora: whose scale the factors have.

    Returns:
      A loss as `experiments.finetune.fit` takes it, of factors, the parameters of the
      base, inputs [B, ...] and the numbers of the next tokens [B, C].
    """
    losses = completion_losses(base)

    def loss(factors: Factors, params: Any, inputs: Any, ids: jax.Array) -> jax.Array:
        return losses(params, scaled(factors, lora), {"": inputs | {NEXT: ids}})[""]

    return loss


def train(
    place: Place,
    recipe: Recipe,
    *,
    only: Collection[str] = (),
    seed: int = 0,
) -> None:
    """Trains and saves the adapter of every domain that has none yet.

    Args:
      place: where all lies, and the shape of the adapters.
      recipe: steps and rates.
      only: domains to train, all if empty.
      seed: of every random draw; each domain draws its own from it.
    """
    base = load_base(place.base, "causal")
    texts = load_unlabeled(place.texts("train"), place.domains, base)
    lora = place.lora
    loss, shapes = completion_loss(base, lora), lora_shapes(base.params, lora.targets)
    for index, (domain, folder) in enumerate(
        zip(place.domains, place.adapters, strict=True)
    ):
        if only and domain not in only:
            continue
        if (folder / CONFIG).is_file():
            report(f"{domain}: exists, kept")
            continue
        inputs, checkpoint = texts.inputs[domain], place.work / f"{domain}.safetensors"
        clock = [time.perf_counter()]
        key = jax.random.fold_in(jax.random.key(seed), index)
        draw_key, fit_key = jax.random.split(key)

        def tell(done: int, loss: float, domain=domain, clock=clock) -> None:
            clock.append(time.perf_counter())
            each = (clock[-1] - clock[-2]) / CHUNK
            report(
                f"{domain}: {done} of {recipe.steps}, {loss:.3f} nats a token, "
                f"{each:.1f} s a step"
            )

        factors = fit(
            loss,
            initial_factors(shapes, lora.rank, draw_key),
            (inputs, inputs[NEXT]),
            key=fit_key,
            steps=recipe.steps,
            rate=recipe.rate,
            decay=recipe.decay,
            batch=recipe.batch,
            frozen=(base.params,),
            chunk=CHUNK,
            checkpoint=checkpoint,
            report=tell,
        )
        save_adapter(folder, factors, lora, base=BASE_NAME, causal=True)
        checkpoint.unlink()


def measure(place: Place) -> dict[str, Any]:
    """domain -> part -> what `jaxmerge.check` finds of its adapter."""
    base = load_base(place.base, "causal")
    adapters = load_peft(place.adapters)
    found: dict[str, Any] = {domain: {} for domain in place.domains}
    for part in ("validation", "test"):
        texts = load_unlabeled(place.texts(part), place.domains, base)
        assess = likelihoods(base, texts, batch=BATCH)
        for domain, standing in texts_alone(adapters, assess).items():
            found[domain][part] = standing.to_json()
            report(
                f"{domain}, {part}: {standing.base_nats:.3f} nats a token, "
                f"{standing.nats:.3f} with the adapter, which {standing.verdict}"
            )
    return found


def main(
    linear: Annotated[
        bool, typer.Option("--linear", help="adapt all linear layers, not q and v")
    ] = False,
    steps: Annotated[int, typer.Option(help="of the optimiser")] = RECIPE.steps,
    only: Annotated[list[str] | None, typer.Option(help="a domain; repeat")] = None,
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
) -> None:
    """Trains what has no adapter yet, and measures all once none is missing."""
    start_jax()
    place = LINEAR if linear else QUERY_VALUE
    recipe = replace(RECIPE, steps=steps)
    train(place, recipe, only=only or (), seed=seed)
    missing = [x for x in place.adapters if not (x / CONFIG).is_file()]
    if missing:
        report(f"not measured: there is no adapter yet at {missing[0]}")
        return
    content = {
        "seed": seed,
        "lora": vars(place.lora) | {"scale": place.lora.scale},
        "recipe": vars(recipe),
        "tasks": measure(place),
    }
    place.metrics.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
