"""The merges that the experiments compare, each with as many candidates to choose from.

A data-free method is a list of pipelines; a learned one a fit with some learning rates,
looked at after some numbers of steps. `BUDGET` candidates of every method are measured
on validation, and the best one goes to test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import optax

import jaxmerge as jm

BUDGET = 8
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4)
RESTORED_SCALES = (0.5, 0.7, 1.0, 1.2, 1.4, 1.7, 2.0, 2.8)  # Pico restores the norm
RATES = (2e-3, 1e-2)
LOOKS = (1, 2, 3, 4)  # quarters of the longest fit


@dataclass(frozen=True)
class DataFree:
    """A merge of the adapters alone; ``pipelines`` are its candidates."""

    name: str
    pipelines: tuple[str, ...]


@dataclass(frozen=True)
class Fitted:
    """A merge that is learned from unlabeled inputs.

    Attributes:
      name: of the method.
      learned: its coefficients.
      optimizer: learning rate -> optimiser.
      scalarise: ``(values, *, preference, anchors) -> objective``.
    """

    name: str
    learned: jm.Learned
    optimizer: Callable[[float], optax.GradientTransformation]
    scalarise: Callable


def _scaled(pipeline: str, scales: tuple[float, ...] = SCALES) -> tuple[str, ...]:
    return tuple(f"{pipeline}|scale({scale})" for scale in scales)


def _dense_and_scaled(
    pipeline: str, densities: tuple[float, float], scales: tuple[float, ...]
) -> tuple[str, ...]:
    return tuple(
        f"{pipeline.format(density)}|scale({scale})"
        for density, scale in product(densities, scales)
    )


_TIES_SCALES, _PICO_TIES_SCALES = (0.3, 0.6, 1.0, 1.5), (0.7, 1.0, 1.4, 2.0)
_tara = partial(
    Fitted,
    optimizer=partial(optax.adamw, weight_decay=0.01),
    scalarise=jm.smooth_tchebycheff,
)

METHODS = (
    DataFree("Task arithmetic", _scaled("concat")),
    DataFree(
        "TIES",
        _dense_and_scaled(
            "elect|trim_whole_model(density={})|full", (0.1, 0.3), _TIES_SCALES
        ),
    ),
    DataFree(
        "DARE-TIES",
        _dense_and_scaled("elect|dare(density={})|full", (0.3, 0.7), _TIES_SCALES),
    ),
    DataFree(
        "KnOTS-TIES",
        _dense_and_scaled(
            "elect|trim_whole_model(density={})|knots", (0.1, 0.3), _TIES_SCALES
        ),
    ),
    DataFree("TSV-M", _scaled("tsv_m")),
    DataFree("Iso-C", _scaled("concat|isotropize")),
    DataFree("Core Space TSV", _scaled("tsv|core")),
    DataFree("Core Space TSV + Iso", _scaled("tsv|core|isotropize")),
    DataFree("Pico + task arithmetic", _scaled("concat|pico", RESTORED_SCALES)),
    DataFree(
        "Pico + TIES",
        _dense_and_scaled(
            "elect|trim(density={})|full|pico", (0.1, 0.3), _PICO_TIES_SCALES
        ),
    ),
    DataFree("Pico + TSV-M", _scaled("tsv_m|pico", RESTORED_SCALES)),
    Fitted("AdaMerging", jm.adamerging(), optax.adam, jm.linear_scalarisation),
    _tara("TARA-A", jm.tara_a()),
    _tara("TARA-B", jm.tara_b()),
    _tara("Pico + TARA-A", jm.compose(jm.tara_a(), before=jm.calibrate)),
    _tara("Pico + TARA-B", jm.compose(jm.tara_b(), before=jm.calibrate)),
)
