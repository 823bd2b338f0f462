"""Pretraining of the base on images alone.

The tower sees half of an image's patches, and its class token must tell, through one
linear map, what the whole image looks like: the oriented gradients and the colour of
each of its 8 x 8 cells. It is masked image modelling whose target is a descriptor
instead of pixels, read from the feature that the tasks will use.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.checkpoints import restored_state, save_state
from experiments.vision8.data import OTHERS, SIDE, TASKS, load_pixels, normalise
from jaxmerge.models import VisionConfig, init_vision
from jaxmerge.models.vit import Embeddings, Encoder

BATCH, CHUNK, SHIFT = 64, 250, 3
SAMPLE = 4096  # images that descriptors are standardised by
CELLS, DIRECTIONS = 8, 8
RATE, DECAY, WARMUP, CLIP = 1e-3, 0.05, 0.03, 1.0

Report = Callable[[str], None]


class Pool(NamedTuple):
    """Images of all sets as bytes [N, 32, 32, 3], and how likely each is drawn [N]."""

    pixels: np.ndarray
    chances: np.ndarray


def load_pool() -> Pool:
    """The train parts of all thirteen sets.

    A set is drawn in proportion to the square root of its size, so that small ones
    are not lost among large ones.
    """
    sets = [load_pixels(name, "train")[0] for name in TASKS + OTHERS]
    chances = np.concatenate([np.full(len(s), len(s) ** -0.5) for s in sets])
    return Pool(np.concatenate(sets), chances / chances.sum())


def describe(images: jax.Array) -> jax.Array:
    """Oriented gradients and colours of cells: [B, 32, 32, 3] -> [B, 704].

    In each of 8 x 8 cells: how strongly the brightness rises in each of 8 directions,
    relative to the cell's and the image's whole gradient; and the mean colour.
    """
    count, size = len(images), SIDE // CELLS
    framed = jnp.pad(images.mean(-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = framed[:, 1:-1, 2:] - framed[:, 1:-1, :-2]
    down = framed[:, 2:, 1:-1] - framed[:, :-2, 1:-1]
    angles = [2 * math.pi * i / DIRECTIONS for i in range(DIRECTIONS)]
    turned = jnp.stack([across * math.cos(t) + down * math.sin(t) for t in angles], -1)
    cells = (count, CELLS, size, CELLS, size, -1)
    rises = jax.nn.relu(turned).reshape(cells).mean((2, 4))
    norms = jnp.linalg.norm(rises, axis=-1, keepdims=True)
    rises = rises / (norms + norms.mean((1, 2), keepdims=True) + 1e-3)
    colours = images.reshape(cells).mean((2, 4))
    parts = (rises.reshape(count, -1), colours.reshape(count, -1))
    return jnp.concatenate(parts, axis=1)


def read_patches(
    config: VisionConfig, params: Any, images: jax.Array, order: jax.Array
) -> jax.Array:
    """The tower's features [B, d] from some patches of each image.

    Args:
      config: sizes of the tower.
      params: its parameters.
      images: [B, 32, 32, 3].
      order: [B, k], indices of the patches that it sees.
    """
    inner = params["vision_model"]
    tokens = Embeddings(config).apply({"params": inner["embeddings"]}, images)
    seen = jnp.take_along_axis(tokens[:, 1:], order[..., None], axis=1)
    tokens = jnp.concatenate([tokens[:, :1], seen], axis=1)
    norm = nn.LayerNorm(epsilon=config.layer_norm_eps)
    hidden = norm.apply({"params": inner["pre_layrnorm"]}, tokens)
    hidden = Encoder(config).apply({"params": inner["encoder"]}, hidden)
    return norm.apply({"params": inner["post_layernorm"]}, hidden[:, 0])


def vary(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images [B, 32, 32, 3] moved by up to 3 pixels, each by its own way."""
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * SHIFT + 1)
    margin = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
    framed = jnp.pad(images, margin, mode="edge")

    def cut(image, offset):
        return jax.lax.dynamic_slice(image, (*offset, 0), (SIDE, SIDE, 3))

    return jax.vmap(cut)(framed, offsets)


def pretrain(
    config: VisionConfig,
    checkpoint: Path,
    *,
    steps: int,
    seen: float = 0.5,
    seed: int = 0,
    report: Report = print,
) -> Any:
    """Trains the tower; continues where ``checkpoint`` ended.

    Args:
      config: sizes of the tower.
      checkpoint: safetensors file of the state, replaced after every 250 steps.
      steps: optimiser steps, of 64 images each.
      seen: share of an image's patches that the tower sees.
      seed: of every random draw.
      report: takes lines of progress.

    Returns:
      Parameters of the tower.
    """
    pool = load_pool()
    key = jax.random.key(seed)
    schedule = optax.warmup_cosine_decay_schedule(0, RATE, int(WARMUP * steps), steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(schedule, weight_decay=DECAY)
    )
    sample = pool.pixels[
        np.random.default_rng(seed).integers(len(pool.pixels), size=SAMPLE)
    ]
    descriptors = describe(normalise(jnp.asarray(sample)))
    mean = descriptors.mean(0, keepdims=True)
    deviation = descriptors.std(0, keepdims=True) + 1e-3
    patches = (SIDE // config.patch_size) ** 2
    kept = round(seen * patches)

    def loss(trained, key, pixels):
        shift_key, mask_key = jax.random.split(key)
        images = vary(shift_key, normalise(pixels))
        order = jnp.argsort(jax.random.uniform(mask_key, (len(images), patches)))
        features = read_patches(config, trained["tower"], images, order[:, :kept])
        found = features @ trained["kernel"] + trained["bias"][None]
        return jnp.mean((found - (describe(images) - mean) / deviation) ** 2)

    @jax.jit  # in a scan, XLA's gradient of the convolution costs more than the tower
    def step(state, key, pixels):
        trained, moments = state
        value, gradient = jax.value_and_grad(loss)(trained, key, pixels)
        change, moments = optimizer.update(gradient, moments, trained)
        return (optax.apply_updates(trained, change), moments), value

    trained = {
        "tower": init_vision(config, key),
        "kernel": jnp.zeros((config.hidden_size, mean.size), jnp.float32),
        "bias": jnp.zeros((mean.size,), jnp.float32),
    }
    state = (trained, optimizer.init(trained))
    start, state = restored_state(checkpoint, state)
    if start:
        report(f"continues after {start} steps")
    began = time.perf_counter()
    for begin in range(start, steps, CHUNK):
        end = min(begin + CHUNK, steps)
        chosen = np.random.default_rng((seed, begin)).choice(
            len(pool.pixels), (end - begin, BATCH), p=pool.chances
        )
        keys = jax.random.split(jax.random.fold_in(key, begin), end - begin)
        losses = []
        for drawn, rows in zip(keys, chosen, strict=True):
            state, value = step(state, drawn, pool.pixels[rows])
            losses.append(value)
        save_state(checkpoint, end, state)
        passed, mean_loss = time.perf_counter() - began, np.mean(losses)
        report(f"{end} of {steps} steps: loss {mean_loss:.4f}, {passed:.0f} s")
    return state[0]["tower"]
