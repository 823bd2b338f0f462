"""The base model, its class vectors, and how a model is scored."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from experiments.digits8.data import Split
from experiments.digits8.tasks import Task
from jaxmerge.models import VisionConfig, load_vision, save_vision, vision_apply

HERE = Path(__file__).parent
BASE, ADAPTERS, METRICS = HERE / "base", HERE / "adapters", HERE / "metrics.json"
CLASS_VECTORS = "class_vectors.safetensors"
LOGIT_SCALE = 10.0

CONFIG = VisionConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_channels=1,
    image_size=8,
    patch_size=2,
    projection_dim=32,
)
apply = vision_apply(CONFIG)  # apply(params, images [N, 8, 8, 1]) -> [N, 32]


class Base(NamedTuple):
    """Pretrained parameters, and for each head its class vectors [classes, 32]."""

    params: Any
    heads: dict[str, jax.Array]


def make_heads(seed: int) -> dict[str, np.ndarray]:
    """Orthonormal class vectors, fixed before pretraining as a text tower's are."""
    rng = np.random.default_rng(seed)
    size = CONFIG.projection_dim
    vectors = np.linalg.qr(rng.normal(size=(size, size)))[0].astype(np.float32)
    return {"digits": vectors[:10], "parity": vectors[10:12]}


def save_base(folder: Path, params: Any, heads: dict[str, np.ndarray]) -> None:
    """Writes the tower as a Hugging Face folder, and the class vectors beside it."""
    save_vision(folder, CONFIG, params)
    save_file(heads, folder / CLASS_VECTORS)


@cache
def load_base(folder: Path = BASE) -> Base:
    """Reads what `save_base` wrote."""
    config, params = load_vision(folder)
    if config != CONFIG:
        raise ValueError(f"{folder}: its config differs from experiments.digits8.model")
    heads = load_file(folder / CLASS_VECTORS)
    return Base(params, {name: jnp.asarray(head) for name, head in heads.items()})


def logits(embeddings: jax.Array, head: jax.Array) -> jax.Array:
    """Scaled cosines of embeddings [N, 32] with class vectors [classes, 32]."""
    length = jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    return LOGIT_SCALE * jnp.matmul(embeddings / length, head.T)


def head_logits(head: jax.Array, embeddings: jax.Array) -> jax.Array:
    """`logits` as losses and bases take them."""
    return logits(embeddings, head)


class Exam(NamedTuple):
    """All tasks' images of one split in one batch, with heads and labels."""

    images: jax.Array  # [tasks * N, 8, 8, 1]
    heads: jax.Array  # [tasks, classes, 32]
    choices: jax.Array  # [tasks, classes], False for classes that a head lacks
    labels: jax.Array  # [tasks, N]

    def of_task(self, task: int) -> "Exam":
        """The exam of one task, by its number."""
        count, only = self.labels.shape[1], slice(task, task + 1)
        return Exam(
            images=self.images[task * count : (task + 1) * count],
            heads=self.heads[only],
            choices=self.choices[only],
            labels=self.labels[only],
        )


def make_exam(
    tasks: dict[str, Task], split: Split, heads: dict[str, jax.Array]
) -> Exam:
    """Prepares an exam; heads of fewer classes are padded."""
    examples = [task.examples(split) for task in tasks.values()]
    images, labels = zip(*examples, strict=True)
    used = [np.asarray(heads[task.head]) for task in tasks.values()]
    classes = max(len(head) for head in used)
    padded = [np.pad(head, ((0, classes - len(head)), (0, 0))) for head in used]
    sizes = np.array([[len(head)] for head in used])
    return Exam(
        images=jnp.asarray(np.concatenate(images)),
        heads=jnp.asarray(np.stack(padded)),
        choices=jnp.asarray(np.arange(classes)[None, :] < sizes),
        labels=jnp.asarray(np.stack(labels)),
    )


def correct_answers(embeddings: jax.Array, exam: Exam) -> jax.Array:
    """How many images of each task are classified right: [tasks]."""
    per_task = embeddings.reshape(len(exam.labels), -1, embeddings.shape[-1])
    scores = jax.vmap(logits)(per_task, exam.heads)
    scores = jnp.where(exam.choices[:, None, :], scores, -jnp.inf)
    return jnp.sum(jnp.argmax(scores, axis=-1) == exam.labels, axis=1)
