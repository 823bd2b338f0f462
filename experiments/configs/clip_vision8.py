"""The eight vision tasks of the papers, on CLIP ViT-B/32 or ViT-L/14.

    export JAXMERGE_CLIP=...       a Hugging Face folder of openai/clip-vit-base-patch32
    export JAXMERGE_ADAPTERS=...   a PEFT folder for each task, named as in `TASKS`
    export JAXMERGE_HEADS=...      safetensors: task -> text vectors [classes, d]
    export JAXMERGE_IMAGES=...     <task>/{validation,test}/<class>/<image>
    python -m experiments.run clip_vision8

The adapters are those that KnOTS publishes, for example. Text vectors are CLIP's for
the names of the classes, in the order of the sorted class folders. The features are
CLIP's image embeddings; a head gives cosines, and the entropy is taken of 100 times
them, the temperature that CLIP was trained with.

On a GPU the fits take minutes; nothing of it was run with CLIP's weights here. Expected
from arXiv 2603.26299, mean normalised accuracy with ViT-B/32: task arithmetic 63.8,
KnOTS-TIES 68.0, AdaMerging 70.0, TARA-A 74.0, TARA-B 76.3.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file

from experiments.image_folders import read_folders
from experiments.settings import Settings, named_path
from experiments.suite import Suite, Task
from jaxmerge.models import load_vision, vision_apply

TASKS = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
FOLDERS = {
    "JAXMERGE_CLIP": "a Hugging Face CLIP folder",
    "JAXMERGE_ADAPTERS": "a folder with a PEFT folder for each task",
    "JAXMERGE_HEADS": "a safetensors file with the text vectors of each task",
    "JAXMERGE_IMAGES": "a folder with <task>/<part>/<class>/<image>",
}
MEAN, DEVIATION = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)  # CLIP's pixels
LIMIT = 3000  # images of a part


def cosines(head: jax.Array, features: jax.Array) -> jax.Array:
    """Cosines of embeddings [B, d] with text vectors [classes, d]: [B, classes]."""
    head, features = (
        x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (head, features)
    )
    return jnp.matmul(features, head.T)


def load_suite() -> Suite:
    """Reads what the environment variables name; images only when asked.

    Raises:
      ValueError: a variable is not set, or what it names does not fit.
    """
    clip, adapters, heads, images = (named_path(*each) for each in FOLDERS.items())
    config, params = load_vision(clip)
    vectors = load_file(heads)
    missing = sorted(set(TASKS) - set(vectors))
    if missing:
        raise ValueError(f"{heads}: no text vectors of {missing[0]!r}")
    tower = vision_apply(config)

    def apply(params: Any, pixels: jax.Array) -> jax.Array:
        mean, deviation = (
            jnp.asarray(x, jnp.float32)[None, None, None] for x in (MEAN, DEVIATION)
        )
        return tower(params, (pixels.astype(jnp.float32) / 255 - mean) / deviation)

    read = partial(read_folders, side=config.image_size, limit=LIMIT)
    tasks = (
        Task(
            name,
            adapters / name,
            jnp.asarray(vectors[name]),
            partial(read, images / name),
        )
        for name in TASKS
    )
    return Suite("clip_vision8", params, apply, cosines, tuple(tasks))


def get_config() -> Settings:
    return Settings(
        load=load_suite, validation=500, test=LIMIT, longest_fit=500, logit_scale=100.0
    )
