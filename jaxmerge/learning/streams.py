"""Inputs on their way through the blocks of a model, of the adapters and of a merge."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.learning.step import Updates
from jaxmerge.models.adapt import Apply, with_updates
from jaxmerge.models.blocks import Block, Blocks, Stream
from jaxmerge.refusals import Refusal
from jaxmerge.stacks import task_updates
from jaxmerge.types import AdapterStack

Streams = dict[str, Stream]  # task -> all of its inputs, on the host


class Visit(NamedTuple):
    """A block with adapters, and what has come to it.

    Attributes:
      block: where it is.
      params: its parameters.
      stacks: its adapters, by the names that modules have in it.
      merged: streams through the merged model, as they reach the block.
      own: streams through the model with the task's own adapter, as they reach it.
      taught: the same as they leave it.
    """

    block: Block
    params: Any
    stacks: dict[str, AdapterStack]
    merged: Streams
    own: Streams
    taught: Streams


def walk(
    model: Blocks,
    tasks: Sequence[str],
    stacks: Mapping[str, AdapterStack],
    inputs: Mapping[str, Any],
    merge: Callable[[Visit], Updates],
    *,
    params: Any,
    size: int,
) -> None:
    """Brings all inputs from block to block, in the merged model and with each adapter.

    Args:
      model: a model in blocks.
      tasks: names of the adapters, in the order of the stacks.
      stacks: module -> adapters.
      inputs: task -> inputs [N, ...].
      merge: called at every block that has adapters; gives the merged updates with
        which inputs go on, by the names that modules have in the block.
      params: of the model.
      size: inputs of a task that go through a block at a time.

    Raises:
      ValueError: adapters of a module that lies in no block, or that its block does not
        run.

    Memory: two hidden states of every input on the host; on the device one block, and
    ``size`` inputs in it. Each input goes through each block twice.
    """
    places = blocks_of(model, stacks)
    first = model.first.apply, jax.device_put(model.first.select(params))
    merged = {task: _through(*first, {}, inputs[task], size) for task in tasks}
    own = dict(merged)
    for block in model.rest:
        names = places.get(block.prefix, {})
        inside = {name: stacks[whole] for name, whole in names.items()}
        run = block.apply, jax.device_put(block.select(params))
        taught = {
            task: _through(*run, task_updates(inside, index), own[task], size)
            for index, task in enumerate(tasks)
        }
        updates: Updates = {}
        if inside:
            updates = merge(Visit(block, run[1], inside, merged, own, taught))
        merged = {
            task: _through(*run, updates, stream, size)
            for task, stream in merged.items()
        }
        own = taught


def blocks_of(model: Blocks, modules: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """prefix of a block -> name of a module in it -> name of the module in the model.

    Raises:
      ValueError: a module that lies in no block.
    """
    found: dict[str, dict[str, str]] = {}
    for module in modules:
        inside = [x.prefix for x in model.rest if module.startswith(x.prefix)]
        if not inside:
            raise Refusal(
                f"{module}: lies in no block of the model; learn it through the whole "
                "model"
            )
        prefix = max(inside, key=len)
        found.setdefault(prefix, {})[module.removeprefix(prefix)] = module
    return found


def _through(
    apply: Apply, params: Any, updates: Updates, inputs: Any, size: int
) -> Stream:
    """Inputs that went through a block, some at a time, in their order."""
    found = [
        jax.device_get(_run(apply, params, updates, some))
        for some, _ in row_chunks(inputs, size)
    ]
    count = len(jax.tree.leaves(inputs)[0])
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *found)


def row_chunks(inputs: Any, size: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Some rows at a time, and which of them count.

    The last ones are filled up with the first, so that all share a program.
    """
    count = len(jax.tree.leaves(inputs)[0])
    size = min(size, count)
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        yield jax.tree.map(lambda x, r=rows % count: x[r], inputs), rows < count


@partial(jax.jit, static_argnums=0)
def _run(apply: Apply, params: Any, updates: Updates, inputs: Any) -> Any:
    return with_updates(apply, updates, merged=None)(params, inputs)
