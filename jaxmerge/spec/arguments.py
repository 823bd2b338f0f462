"""What the arguments of steps may be: their types, bounds and choices."""

from collections.abc import Mapping
from typing import Any

from jaxmerge.spec.kinds import EACH, Accepts, Argument


def _one_of(module: str, *names: str) -> Accepts:
    return Accepts(
        " or ".join(names), choices={name: f"{module}:{name}" for name in names}
    )


SHARE = Accepts("a number in (0, 1]", float, lambda x: 0 < x <= 1)
NUMBER = Accepts("a finite number", float)
FRACTION = Accepts("a number in [0, 1]", float, lambda x: 0 <= x <= 1)
NOT_NEGATIVE = Accepts("a number of at least 0", float, lambda x: x >= 0)
POSITIVE = Accepts("a number above 0", float, lambda x: x > 0)
WINDOW = Accepts("a number in [0, 0.5)", float, lambda x: 0 <= x < 0.5)
COUNT = Accepts("a whole number of at least 1", int, lambda x: x >= 1)
WHOLE = Accepts("a whole number", int)
FLAG = Accepts("True or False", bool)
SIGN = _one_of("jaxmerge.mergers.ties", "sign_of_sum", "sign_of_count")
COMBINE = _one_of(
    "jaxmerge.mergers.ties",
    "mean_of_agreeing",
    "sum_of_agreeing",
    "largest_of_agreeing",
)
ELECTION = {
    "sign": Argument(SIGN, "sign_of_sum"),
    "combine": Argument(COMBINE, "mean_of_agreeing"),
}
DENSITY = {"density": Argument(SHARE._replace(each=True))}
RIDGE = {"ridge": Argument(NOT_NEGATIVE, 0.0)}
REGRESSION = {"off_diagonal": Argument(FRACTION, 1.0)} | RIDGE
ROUNDS = {
    "iterations": Argument(COUNT, 10),
    "balance": Argument(FLAG, True),
    "mix": Argument(FRACTION, 5e-4),
    "ridge": Argument(NOT_NEGATIVE, 1e-7),
}
CLUSTERS = {
    "rank": Argument(COUNT, None),
    "iterations": Argument(COUNT, 10),
    "align": Argument(FLAG, True),
}
COMMON_BASES = {
    "rank": Argument(COUNT),
    "beta": Argument(FRACTION, 0.25),
    "iterations": Argument(COUNT, 30),
}


def della_problem(arguments: Mapping[str, Any]) -> str:
    """What is wrong with the arguments of della together, "" if nothing."""
    density, epsilon = arguments["density"], arguments["epsilon"]
    if density == EACH:
        return ""
    if 0 < density - epsilon <= density + epsilon <= 1:
        return ""
    return (
        f"density {density} and epsilon {epsilon} give probabilities outside (0, 1]; "
        "choose epsilon below density and at most 1 - density"
    )
