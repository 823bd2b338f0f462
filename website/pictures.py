"""What each method does to two small adapters, drawn by running it."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxmerge as jm
from jaxmerge.spec import STEPS

SIZE, RANK, CELL, GAP = 12, 3, 11, 40
_BEHIND = {  # kind of step -> how a pipeline with it is spelled
    "rule": "{}|full",
    "rule transform": "elect|{}|full",
    "whole-model transform": "elect|{}|full",
    "space": "ties(density=0.3)|{}",
    "merger": "{}",
    "calibration": "concat|{}",
    "post": "concat|{}",
}
_GIVEN = {
    "ties": "ties(density=0.3)",
    "trim": "trim(density=0.3)",
    "trim_whole_model": "trim_whole_model(density=0.3)",
    "dare": "dare(density=0.5)",
    "della": "della(density=0.5)",
    "compressed": "compressed(rank=3)",
    "soft_threshold": "soft_threshold(0.5)",
    "scale": "scale(0.5)",
    "truncate": "truncate(rank=2)",
}
PICTURED = {
    name: _BEHIND[step.kind].format(_GIVEN.get(name, name))
    for name, step in STEPS.items()
    if step.kind in _BEHIND and not step.statistics
}


def adapters() -> jm.AdapterStack:
    """Two adapters that share a direction, contradict in another and differ in size."""
    rng = np.random.default_rng(4)
    b, a = rng.normal(size=(2, SIZE, RANK)), rng.normal(size=(2, RANK, SIZE))
    b[1, :, 0], a[1, 0] = b[0, :, 0], a[0, 0]
    b[1, :, 1], a[1, 1] = -0.6 * b[0, :, 1], a[0, 1]
    sizes = np.array([2.0, 1.2, 0.6])
    return jm.stack_adapters(
        [
            (jnp.asarray(x * sizes, jnp.float32), jnp.asarray(y, jnp.float32))
            for x, y in zip(b, a, strict=True)
        ]
    )


def picture(name: str) -> str:
    """SVG of the two updates and their merge by the pipeline of a step."""
    stack = adapters()
    pipeline = jm.parse(PICTURED[name])
    needed = {"key": jax.random.key(0)} if STEPS[name].random else {}
    merged = jm.dense(pipeline.run({"layer": stack}, **needed)["layer"])
    updates = [jm.dense(jm.task_updates({"layer": stack}, t)["layer"]) for t in (0, 1)]
    return draw([*map(np.asarray, updates), np.asarray(merged)])


def draw(matrices: list[np.ndarray]) -> str:
    """Heat maps side by side, the last behind an arrow, on one scale of colours."""
    largest = max(abs(matrix).max() for matrix in matrices)
    width = len(matrices) * (SIZE * CELL + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
        f'height="{SIZE * CELL}" viewBox="0 0 {width} {SIZE * CELL}">'
    ]
    for place, matrix in enumerate(matrices):
        left = place * (SIZE * CELL + GAP)
        for (row, column), value in np.ndenumerate(matrix):
            parts.append(
                f'<rect x="{left + column * CELL}" y="{row * CELL}" width="{CELL}" '
                f'height="{CELL}" fill="{colour(value / largest)}"/>'
            )
        sign = "+" if place < len(matrices) - 2 else "→"
        if place < len(matrices) - 1:
            parts.append(
                f'<text x="{left + SIZE * CELL + GAP / 2}" y="{SIZE * CELL / 2 + 8}" '
                f'font-size="24" text-anchor="middle" fill="#888">{sign}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])


def colour(value: float) -> str:
    """Of a number in [-1, 1]: blue, white, red.

    >>> colour(0), colour(1), colour(-1)
    ('#ffffff', '#b2182b', '#2166ac')
    """
    end = (178, 24, 43) if value > 0 else (33, 102, 172)
    share = min(abs(float(value)), 1.0)
    return "#" + "".join(f"{round(255 + (part - 255) * share):02x}" for part in end)
