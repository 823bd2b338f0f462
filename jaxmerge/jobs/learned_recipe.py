"""A learned merge as it is asked for and recorded."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from jaxmerge.io import AdapterError, Adapters
from jaxmerge.learning.coefficients import adamerging, compose, tara_a, tara_b
from jaxmerge.learning.objectives import linear_scalarisation, smooth_tchebycheff
from jaxmerge.learning.step import Scalarise, merge
from jaxmerge.mapping import map_modules
from jaxmerge.mergers.pico import calibrate
from jaxmerge.types import Learned, Update


class Published(NamedTuple):
    """A method, with the first coefficient, objective and optimiser of its source."""

    make: Callable[..., Learned]
    initial: float
    objective: str
    optimizer: str


METHODS = {
    "tara-a": Published(tara_a, 0.4, "tchebycheff", "adamw"),
    "tara-b": Published(tara_b, 0.4, "tchebycheff", "adamw"),
    "adamerging": Published(adamerging, 0.3, "linear", "adam"),
}
OPTIMIZERS = {"adam": optax.adam, "adamw": partial(optax.adamw, weight_decay=0.01)}
LOSSES = ("entropy", "null-space")  # of each task
OBJECTIVES = ("tchebycheff", "tchebycheff-absolute", "linear")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How coefficients are learned; with all inputs it determines the result.

    Attributes:
      method: one of `METHODS`.
      pico: learn on the directions that `jaxmerge.calibrate` gives.
      shared: one phi for all modules, as in task-wise AdaMerging.
      loss: one of `LOSSES`: entropy of the predictions, or `null_space_ratios`, which
        needs no head.
      initial: every coefficient at the start; by default the method's published one.
      objective: one of `OBJECTIVES`; by default the method's published one.
      preference: rho, one for each adapter, of sum 1; None for equal ones.
      alpha: smoothing of the Tchebycheff objectives.
      rate: of the method's published optimiser, Adam or AdamW (weight decay 0.01).
      steps: of the optimiser.
      batch: inputs of each task in a step.
      seed: of the batches.
      logit_scale: multiplies the logits before the softmax of the entropy.
      accumulate: one task's activations in memory at a time.
    """

    method: str
    pico: bool = False
    shared: bool = False
    loss: str = "entropy"
    initial: float | None = None
    objective: str | None = None
    preference: tuple[float, ...] | None = None
    alpha: float = 1.0
    rate: float = 1e-3
    steps: int = 500
    batch: int = 16
    seed: int = 0
    logit_scale: float = 1.0
    accumulate: bool = False

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(
                f"method {self.method!r} is not one of {', '.join(METHODS)}"
            )
        published = METHODS[self.method]
        if self.initial is None:
            self._set("initial", published.initial)
        if self.objective is None:
            self._set("objective", published.objective)
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"objective {self.objective!r} is not one of {', '.join(OBJECTIVES)}"
            )
        if self.loss not in LOSSES:
            raise ValueError(f"loss {self.loss!r} is not one of {', '.join(LOSSES)}")
        if not math.isfinite(self.initial):
            raise ValueError(f"initial {self.initial}: expected a finite number")
        for name in ("alpha", "rate", "logit_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)}: expected above 0")
        if self.shared and self.method != "adamerging":
            raise ValueError(
                f"{self.method} has coefficients for the directions of each module; "
                "only those of adamerging can be shared"
            )
        if self.preference is not None:
            self._set("preference", _on_simplex(self.preference))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Recipe":
        """What `to_record` gave; other entries are ignored."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in record.items() if name in known}
        values["method"] = record["learned"]
        if values.get("preference") is not None:
            values["preference"] = tuple(values["preference"])
        return cls(**values)

    def to_record(self) -> dict[str, Any]:
        """As JSON values; what plays no part is left out."""
        record = asdict(self) | {"optimizer": METHODS[self.method].optimizer}
        record = {"learned": record.pop("method"), **record}
        if self.objective == "linear":
            del record["alpha"]
        if self.loss != "entropy":
            del record["logit_scale"]
        if self.preference is not None:
            record["preference"] = list(self.preference)
        return record

    @property
    def learned(self) -> Learned:
        """The method with its coefficients at the start."""
        method = METHODS[self.method].make(initial=self.initial)
        return compose(method, before=calibrate) if self.pico else method

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam or AdamW with a constant rate."""
        return OPTIMIZERS[METHODS[self.method].optimizer](self.rate)

    def scalarise(self, anchors: jax.Array) -> Scalarise:
        """The objective, measured from the anchors [T]."""
        if self.objective == "linear":
            return partial(linear_scalarisation, anchors=anchors)
        absolute = self.objective == "tchebycheff-absolute"
        return partial(
            smooth_tchebycheff, anchors=anchors, alpha=self.alpha, absolute=absolute
        )

    def apply(self, adapters: Adapters, phis: Mapping[str, Any]) -> dict[str, Update]:
        """Merges with known coefficients, as at the end of a fit.

        Raises:
          AdapterError: the coefficients are not those of these adapters.
        """
        learned = self.learned
        bases = map_modules(learned.prepare, adapters.stacks)
        check_coefficients(learned.init, bases, phis, shared=self.shared)
        return merge(learned, phis, bases)


def check_coefficients(
    init: Callable[[Any], jax.Array],
    bases: Mapping[str, Any],
    phis: Mapping[str, Any],
    *,
    shared: bool,
) -> None:
    """Refuses coefficients of other modules or shapes than the adapters have."""
    if not shared and phis.keys() != bases.keys():
        odd = sorted(phis.keys() ^ bases.keys())
        raise AdapterError(f"{odd[0]}: in the adapters or the coefficients only")
    for name, basis in bases.items():
        expected = jax.eval_shape(init, basis).shape
        found = jax.numpy.shape(next(iter(phis.values())) if shared else phis[name])
        if found != expected:
            raise AdapterError(f"{name}: coefficients {found}, expected {expected}")


def _on_simplex(preference: tuple[float, ...]) -> tuple[float, ...]:
    total = math.fsum(preference)
    if not all(0 <= share < math.inf for share in preference) or not total > 0:
        raise ValueError(
            f"preference {list(preference)}: expected numbers from 0 on that are not "
            "all 0"
        )
    return tuple(share / total for share in preference)
