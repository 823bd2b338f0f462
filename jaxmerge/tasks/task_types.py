"""Whether adapters are of classifiers or of causal language models."""

from typing import get_args

from jaxmerge.io import Adapters
from jaxmerge.io.errors import listing
from jaxmerge.io.options import TaskType
from jaxmerge.refusals import Option, Refusal

CAUSAL = Option("task_type", "causal", quoted=True)
_OF_PEFT = "CAUSAL_LM"  # as its configs say it


def task_type_of(adapters: Adapters | None, given: TaskType | None) -> TaskType:
    """What adapters are of: as given, or as ``task_type`` of their configs says.

    Args:
      adapters: None where there are none, which are then taken for classifiers.
      given: overrides the configs, unless None.

    Raises:
      ValueError: adapters of both kinds, with their names.
    """
    if given is not None:
        if given not in get_args(TaskType):
            raise Refusal(
                Option("task_type", str(given), quoted=True),
                f": expected one of {', '.join(get_args(TaskType))}",
            )
        return given
    if adapters is None:
        return "classification"
    named = zip(adapters.names, adapters.sources, strict=True)
    causal = [name for name, source in named if source.task_type == _OF_PEFT]
    others = [name for name in adapters.names if name not in causal]
    if causal and others:
        raise Refusal(
            f"{listing(causal)} are of a causal language model (task_type {_OF_PEFT}), "
            f"{listing(others)} are not; take those of one kind, or say with ",
            CAUSAL,
            " what all of them are",
        )
    return "causal" if causal else "classification"
