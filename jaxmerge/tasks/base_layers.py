"""The linear layers of a base, and the adapters that change them."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxmerge.io import Adapters
from jaxmerge.models import with_taps, with_updates
from jaxmerge.models.adapt import Apply
from jaxmerge.models.decoder import LM_HEAD
from jaxmerge.refusals import Option, Refusal
from jaxmerge.stacks import task_updates
from jaxmerge.stats.moments import Mask
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.next_tokens import counted_inputs


def check_layers(
    base: Base, adapters: Adapters, inputs: Any, *, with_heads: bool = False
) -> None:
    """Refuses adapters of layers that the base does not run, or that have other sizes.

    Args:
      base: the model; only traced.
      adapters: of the base, as far as is known.
      inputs: what it reads, [N, ...].
      with_heads: whether what is done next runs the head of a causal language model
        with its updates, so that adapters may change it.

    Raises:
      ValueError: names the module and the nearest names, or both shapes.
    """
    updates = task_updates(adapters.stacks, 0)
    if base.vocabulary is not None and LM_HEAD in updates:
        b, a = updates.pop(LM_HEAD)
        rows = jax.eval_shape(base.vocabulary, base.params).shape
        if not with_heads:
            raise Refusal(
                f"the adapters change {LM_HEAD}, which nothing here looks at; learn by "
                "distillation through the whole model, train without it, or merge "
                "without a base"
            )
        if (b.shape[0], a.shape[1]) != rows:
            raise Refusal(
                f"{base.folder}: {LM_HEAD} is {rows}, its update "
                f"{(b.shape[0], a.shape[1])}; the adapters belong to another base"
            )
    try:
        shape_of(with_updates(base.apply, updates), base.params, inputs)
    except ValueError as error:
        raise Refusal(
            f"{base.folder}: {error}; the adapters belong to another base, or need ",
            Option("add_prefix", "<text>"),
            " or ",
            Option("strip_prefix", "<text>"),
        ) from None


def refuse_biases(adapters: Adapters) -> None:
    """ValueError for biases of LoRA layers, which `with_updates` does not add."""
    if adapters.biases:
        raise Refusal(
            f"module {next(iter(adapters.biases))!r} has a LoRA bias, which is not "
            "added to the base model here; train without lora_bias"
        )


def token_mask(base: Base, inputs: Any, modules: Sequence[str]) -> Mask | None:
    """Which inputs of some layers count, as for `jaxmerge.collect_inputs`: no padding,
    and in a causal language model the tokens alone whose next one counts.

    Args:
      base: the model; only traced.
      inputs: what it reads, [N, ...].
      modules: names of layers; those after the pooling see no padding.
    """
    if base.inputs != "texts":
        return None
    _, taps = shape_of(with_taps(base.apply, modules), base.params, inputs)
    batch_and_tokens = len(inputs["attention_mask"].shape)
    per_token = [name for name in modules if taps[name].ndim > batch_and_tokens]

    def mask(batch: Any) -> dict[str, jax.Array]:
        filled: jax.Array = batch["attention_mask"].astype(bool)
        counted = counted_inputs(batch) if base.causal else filled
        return dict.fromkeys(per_token, counted)

    return mask


def shape_of(apply: Apply, params: Any, inputs: Any) -> Any:
    """Shapes of what a model makes of the first of some inputs, without running it."""
    first = jax.tree.map(lambda x: x[:1], inputs)
    # a new function each time: eval_shape does not trace one again that it knows
    return jax.eval_shape(lambda *x: apply(*x), params, first)
