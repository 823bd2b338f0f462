"""The suite: a small vision tower, eight tasks, and each one's head and adapter."""

from functools import partial
from pathlib import Path

import jax.numpy as jnp
from safetensors.numpy import load_file

from experiments.suite import Suite, Task
from experiments.vision8.data import SIDE, TASKS, load_split
from jaxmerge import tasks
from jaxmerge.models import VisionConfig, head_logits

HERE = Path(__file__).parent
TRAINED, METRICS = HERE / "trained", HERE / "metrics.json"
BASE, HEADS = "base", "heads.safetensors"
ADAPTERS, PROBED = "adapters", "adapters_on_probes"

CONFIG = VisionConfig(
    hidden_size=192,
    intermediate_size=384,
    num_hidden_layers=6,
    num_attention_heads=3,
    image_size=SIDE,
    patch_size=8,
    projection_dim=None,
)


def load_base(folder: Path) -> Suite:
    """The base with linear heads, without tasks.

    Raises:
      ValueError: it is missing or of another config.
    """
    if not (folder / BASE).is_dir():
        raise ValueError(
            f"{folder / BASE}: no such folder; run: python -m experiments.vision8.train"
        )
    base = tasks.load_base(folder / BASE)
    if base.config != CONFIG:
        raise ValueError(f"{folder / BASE}: its config is not that of {__name__}")
    return Suite("vision8", base._replace(logits=head_logits), tasks=())


def load_suite(folder: Path = TRAINED, *, probes: bool = False) -> Suite:
    """Reads what ``python -m experiments.vision8.train`` wrote, and images when asked.

    Args:
      folder: with the base, the heads and the adapters.
      probes: with the linear probes of the base in the place of the heads, and the
        adapters that were trained below them.

    Returns:
      Suite whose inputs are images [B, 32, 32, 3] and whose features are the pooled
      class token [B, 192].

    Raises:
      ValueError: base or heads are missing or do not fit.
    """
    suite, path = load_base(folder), folder / HEADS
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; run: python -m experiments.vision8.train"
        )
    adapters = folder / (PROBED if probes else ADAPTERS)
    stored = {key: jnp.asarray(value) for key, value in load_file(path).items()}
    found = (
        Task(
            name=name,
            adapter=adapters / name,
            head={
                part: stored[f"{name}.{'probe_' * probes}{part}"]
                for part in ("kernel", "bias")
            },
            load=partial(load_split, name),
        )
        for name in TASKS
    )
    return suite._replace(tasks=tuple(found))
