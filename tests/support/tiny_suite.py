"""A tiny vision tower with easy tasks, for tests of experiments."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.suite import Split, Suite, Task
from jaxmerge.models import VisionConfig, head_logits, init_vision, save_vision
from jaxmerge.tasks import load_base

CONFIG = VisionConfig(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=4,
    patch_size=2,
    projection_dim=None,
)
FEW_STEPS = {"learning_batch": 2, "longest_fit": 4, "start_batches": 1}


def bright_images(part: str, *, channel: int, count: int) -> Split:
    """Is one colour of the upper left patch strong? Its amount is the label."""
    rng = np.random.default_rng({"train": 0, "validation": 1, "test": 2}[part])
    labels = rng.integers(0, 2, count).astype(np.int32)
    images = rng.normal(size=(count, 4, 4, 3)).astype(np.float32)
    images[:, :2, :2, channel] += (3 * labels)[:, None, None]
    return Split(images, labels)


def image_suite(folder: Path, names: tuple[str, ...], *, count: int) -> Suite:
    """Tasks on the colours, with random heads and adapters below the folder."""
    save_vision(folder / "base", CONFIG, init_vision(CONFIG, jax.random.key(0)))
    base = load_base(folder / "base")._replace(logits=head_logits)
    kernels = jax.random.normal(jax.random.key(1), (len(names), 8, 2), jnp.float32)
    tasks = (
        Task(
            name,
            folder / name,
            {"kernel": kernels[channel]},
            partial(bright_images, channel=channel, count=count),
        )
        for channel, name in enumerate(names)
    )
    return Suite("tiny", base, tuple(tasks))
