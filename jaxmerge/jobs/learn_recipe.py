"""A learned merge as it is asked for and recorded."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import jax
import optax

from jaxmerge.io import AdapterError, Adapters
from jaxmerge.learning.apply import apply_learned
from jaxmerge.learning.objectives import linear_scalarisation, smooth_tchebycheff
from jaxmerge.learning.step import Scalarise
from jaxmerge.refusals import Option, Refusal
from jaxmerge.spec import Pipeline, parse
from jaxmerge.spec.steps import STEPS
from jaxmerge.stats.moments import Statistics
from jaxmerge.types import Learned, Update

OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": partial(optax.adamw, weight_decay=0.01),
}
LOSSES = ("distillation", "features", "entropy", "information", "null-space")
WITH_HEADS = ("distillation", "entropy", "information")  # losses of predictions
OF_TOKENS = ("distillation", "features", "entropy", "null-space")  # of language models
TAUGHT = ("distillation", "features")  # losses in which each adapter is the teacher
UNITS = ("model", "block", "layer")  # what is learned at a time
STARTS = ("auto", "method")
_OF_STEPS = ("start", "rate", "schedule", "steps", "seed", "accumulate", "optimizer")
SCHEDULES = ("constant", "cosine")
OBJECTIVES = ("tchebycheff", "tchebycheff-absolute", "linear")


@dataclass(frozen=True, kw_only=True)
class LearnRecipe:
    """How coefficients are learned; with all inputs it determines the result.

    Attributes:
      pipeline: a learned merger with what surrounds it, such as ``tara_b|svc``.
      shared: one phi for all modules, as in task-wise AdaMerging.
      unit: "model" learns all coefficients through the whole model, "block" those of a
        block from its own outputs (`jaxmerge.fit_blocks`), "layer" those of a linear
        layer in closed form (`jaxmerge.solve_blocks`).
      loss: of each task, one of `LOSSES`: divergence from the predictions of its own
        adapter, distance from the features of its own adapter, entropy of the
        predictions, the same less the entropy of their mean, or `null_space_ratios`.
        Features and null spaces need no heads. By default the first; of blocks and
        layers always features, their outputs.
      start: "auto" begins at the scale that serves the objective best, see
        `jaxmerge.search_start`; "method" as the pipeline says.
      temperature: of the predictions that are compared, see `jaxmerge.distillation`.
      teacher_top: tokens that are kept of what each teacher says, see
        `jaxmerge.top_tokens`; None for hidden states or, of classifiers, logits.
      objective: one of `OBJECTIVES`; by default the method's published one.
      preference: rho, one for each adapter, of sum 1; None for equal ones.
      alpha: smoothing of the Tchebycheff objectives.
      rate: of the method's published optimiser, Adam or AdamW (weight decay 0.01);
        by default 2e-2 for losses with a teacher, 1e-3 for the others.
      schedule: of the rate, "constant" or "cosine", which falls to 0 at the last step;
        by default the latter for losses with a teacher.
      steps: number of steps of the optimiser.
      batch: inputs of each task in a step.
      seed: seed from which the batches are drawn.
      logit_scale: multiplies the logits before the softmax.
      accumulate: one task's activations in memory at a time.
    """

    pipeline: Pipeline
    shared: bool = False
    unit: str = "model"
    loss: str = ""
    start: str = "auto"
    temperature: float = 1.0
    teacher_top: int | None = None
    objective: str = ""
    preference: tuple[float, ...] | None = None
    alpha: float = 1.0
    rate: float | None = None
    schedule: str = ""
    steps: int = 500
    batch: int = 16
    seed: int = 0
    logit_scale: float = 1.0
    accumulate: bool = False

    def __post_init__(self) -> None:
        self.pipeline.learnable()  # refuses a pipeline that has nothing to learn
        if self.unit not in UNITS:
            raise Refusal(
                Option("unit", self.unit, quoted=True),
                f": expected one of {', '.join(UNITS)}",
            )
        if not self.loss:
            self._set("loss", "distillation" if self.unit == "model" else "features")
        if not self.objective:
            usual = self.pipeline.published.objective
            self._set("objective", "linear" if self.unit == "layer" else usual)
        self._check_unit()
        if self.objective not in OBJECTIVES:
            raise Refusal(
                Option("objective", self.objective, quoted=True),
                f": expected one of {', '.join(OBJECTIVES)}",
            )
        if self.loss not in LOSSES:
            raise Refusal(
                Option("loss", self.loss, quoted=True),
                f": expected one of {', '.join(LOSSES)}",
            )
        if self.start not in STARTS:
            raise Refusal(
                Option("start", self.start, quoted=True),
                f": expected one of {', '.join(STARTS)}",
            )
        if self.rate is None:
            self._set("rate", _default_rate(self.loss))
        if not self.schedule:
            self._set("schedule", "cosine" if self.loss in TAUGHT else "constant")
        if self.schedule not in SCHEDULES:
            raise Refusal(
                Option("schedule", self.schedule, quoted=True),
                f": expected one of {', '.join(SCHEDULES)}",
            )
        for name in ("alpha", "rate", "logit_scale", "temperature"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise Refusal(Option(name, str(value)), ": expected a number above 0")
        if self.shared and not self.pipeline.published.shared:
            raise Refusal(
                f"{self.pipeline.text} has coefficients for the directions of each "
                "module, which cannot be shared; leave out ",
                *(Option("shared"), f", or learn {_shareable()}"),
            )
        if self.teacher_top is not None and self.loss != "distillation":
            raise Refusal(
                *(Option("loss", self.loss, quoted=True), " has no predictions of "),
                *("teachers; leave out ", Option("teacher_top")),
            )
        if self.preference is not None:
            self._set("preference", _on_simplex(self.preference))

    def _check_unit(self) -> None:
        """Refuses what is not defined for single blocks or layers."""
        unit = Option("unit", self.unit, quoted=True)
        if self.unit != "model":
            if self.loss != "features":
                told = Option("loss", self.loss, quoted=True)
                raise Refusal(unit, " compares hidden states; leave out ", told)
            for name in ("shared", "accumulate"):
                if getattr(self, name):
                    raise Refusal(
                        unit, " learns no more at a time; leave out ", Option(name)
                    )
        if self.unit == "layer":
            if self.objective != "linear":
                told = Option("objective", self.objective, quoted=True)
                raise Refusal(unit, " has a closed form if linear; leave out ", told)
            if self.learned.squares is None:
                raise Refusal(
                    unit,
                    f" has no closed form for {self.pipeline.text}, which is not ",
                    "linear in its coefficients; learn tara_a, tara_b or ",
                    "adamerging(clamp=False), without steps after them, or give ",
                    Option("unit", "block", quoted=True),
                )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "LearnRecipe":
        """The recipe that `to_record` described; other entries are ignored."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {k: v for k, v in record.items() if k in known}
        if values.get("preference") is not None:
            values["preference"] = tuple(values["preference"])
        values.setdefault("start", "method")  # version 0.1.0 knew no other
        values.setdefault("schedule", "constant")  # and neither of this
        values["pipeline"] = parse(_pipeline_of(record))
        return cls(**values)

    def to_record(self) -> dict[str, Any]:
        """As JSON values; what plays no part is left out."""
        settings = asdict(self)
        del settings["pipeline"]
        optimizer = self.pipeline.published.optimizer
        record = {"learned": self.pipeline.text, **settings, "optimizer": optimizer}
        if self.pipeline.own_steps:
            record["own_steps"] = self.pipeline.own_steps
        absent = {
            "alpha": self.objective == "linear",
            "logit_scale": self.loss not in WITH_HEADS,
            "temperature": self.loss != "distillation",
            "teacher_top": self.teacher_top is None,
            "unit": self.unit == "model",
            **dict.fromkeys(_OF_STEPS, self.unit == "layer"),
        }
        for name in absent:
            if absent[name]:
                del record[name]
        if self.preference is not None:
            record["preference"] = list(self.preference)
        return record

    @property
    def learned(self) -> Learned:
        """The method with its coefficients at the start."""
        return self.pipeline.learnable()

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam or AdamW at the rate, constant or falling."""
        rate: Any = self.rate or _default_rate(self.loss)
        if self.schedule == "cosine":
            rate = optax.cosine_decay_schedule(rate, self.steps)
        return OPTIMIZERS[self.pipeline.published.optimizer](rate)

    @property
    def rho(self) -> jax.Array | None:
        """The preference as `jaxmerge.fit` takes it."""
        if self.preference is None:
            return None
        return jax.numpy.asarray(self.preference, jax.numpy.float32)

    def scalarise(self, anchors: jax.Array) -> Scalarise:
        """The objective, measured from the anchors [T]."""
        if self.objective == "linear":
            return partial(linear_scalarisation, anchors=anchors)
        absolute = self.objective == "tchebycheff-absolute"
        return partial(
            smooth_tchebycheff, anchors=anchors, alpha=self.alpha, absolute=absolute
        )

    def apply(
        self,
        adapters: Adapters,
        phis: Mapping[str, Any],
        stats: Mapping[str, Statistics] | None = None,
    ) -> dict[str, Update]:
        """Merges with known coefficients, as at the end of a fit.

        Args:
          adapters: those that were merged.
          phis: module -> coefficients.
          stats: module -> statistics of their inputs, where the pipeline needs them.

        Raises:
          AdapterError: the coefficients are not those of these adapters.
        """
        try:
            return apply_learned(self.learned, phis)(adapters.stacks, stats=stats)
        except Refusal as error:
            raise AdapterError(*error.message) from error


def check_loss(loss: str, option: Option, *, causal: bool) -> None:
    """Refuses a loss that is not defined for the tokens of a causal language model."""
    if causal and loss not in OF_TOKENS:
        known = ", ".join(OF_TOKENS)
        raise Refusal(
            option,
            f" is for classes; for a causal language model choose one of {known}",
        )


def _shareable() -> str:
    steps = ((name, step.published) for name, step in STEPS.items())
    return " or ".join(name for name, how in steps if how is not None and how.shared)


def _default_rate(loss: str) -> float:
    return 2e-2 if loss in TAUGHT else 1e-3  # the latter is that of the papers


def _pipeline_of(record: Mapping[str, Any]) -> str:
    """The pipeline of a record; version 0.1.0 recorded a method and its options."""
    text = str(record["learned"])
    if "initial" not in record:
        return text
    method = f"{text.replace('-', '_')}(initial={record['initial']!r})"
    return f"{method}|calibrate" if record.get("pico") else method


def _on_simplex(preference: tuple[float, ...]) -> tuple[float, ...]:
    total = math.fsum(preference)
    if not all(0 <= share < math.inf for share in preference) or not total > 0:
        raise Refusal(
            Option("preference", ",".join(map(str, preference))),
            ": expected numbers from 0 on that are not all 0",
        )
    return tuple(share / total for share in preference)
