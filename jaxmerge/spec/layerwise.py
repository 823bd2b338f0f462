"""Numbers of tasks that differ from module to module: by depth, and by name.

A `Setting` says the number of one task, such as its weight, in every module:

* a number, the same everywhere: ``0.4``;
* numbers over the depth of the model, between which layers are interpolated:
  ``[0.2, 0.8]`` rises from the first layer to the last;
* conditions, of which the first that fits a module counts:
  ``[{"filter": "self_attn", "value": [0.2, 0.8]}, {"value": 0.5}]``.

Recipes of mergekit write their parameters in this way. It is JSON, so that a record
holds it as it was given.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.io.fields import number
from jaxmerge.refusals import Refusal, nearest

Setting = float | Sequence[Any]
PerModule = (
    Sequence[Setting] | Mapping[str, Sequence[float]] | Callable[[str], Sequence[float]]
)
_EVERYWHERE = "*"
_LAYER = re.compile(r"(?:(?P<stack>.+?)\.)?(?P<number>\d{1,9})(?:\.|$)")


def layer_of(module: str) -> tuple[str, int] | None:
    """The stack of layers in which a module lies, and the number of its layer.

    The first number of the name counts, so that experts and blocks below it do not.

    >>> layer_of("model.layers.12.mlp.experts.3.up_proj"), layer_of("lm_head")
    (('model.layers', 12), None)
    """
    found = _LAYER.match(module)
    return None if found is None else (found["stack"] or "", int(found["number"]))


def depths(modules: Iterable[str]) -> dict[str, float | None]:
    """module -> its place between the first layer (0) and the last (1) of its stack.

    With l the number of its layer and L one more than the largest number of the stack,
    that is ``l / (L - 1)``; 1 where there is one layer, None where the name has none.

    >>> depths(["h.0.fc", "h.1.fc", "h.4.fc", "head"])
    {'h.0.fc': 0.0, 'h.1.fc': 0.25, 'h.4.fc': 1.0, 'head': None}
    """
    places = {module: layer_of(module) for module in modules}
    last: dict[str, int] = {}
    for stack, layer in filter(None, places.values()):
        last[stack] = max(layer, last.get(stack, 0))
    return {
        module: None if at is None else at[1] / last[at[0]] if last[at[0]] else 1.0
        for module, at in places.items()
    }


def module_values(
    settings: Sequence[Setting], modules: Iterable[str], *, name: str = "weights"
) -> dict[str, np.ndarray]:
    """The numbers of T tasks in every module, as merges take ``weights``.

    A list of k numbers is interpolated: at depth t (see `depths`) it is that between
    the two which stand beside ``t (k - 1)``.

    Args:
      settings: of each task, see `Setting`.
      modules: names of the adapted modules.
      name: of the numbers, for messages.

    Returns:
      module -> [T].

    Raises:
      Refusal: a setting that is none; a condition that fits no module, or a module that
        none fits; numbers over the depth for a module whose name has no layer.

    >>> rising = [{"filter": "self_attn", "value": [0.0, 1.0]}, {"value": 0.5}]
    >>> names = ["h.0.mlp", "h.0.self_attn", "h.2.self_attn"]
    >>> for module, values in module_values([rising, 2], names).items():
    ...     print(module, values)
    h.0.mlp [0.5 2. ]
    h.0.self_attn [0. 2.]
    h.2.self_attn [1. 2.]
    """
    at = depths(modules)
    columns = [
        _column(checked_setting(setting, f"{name}[{task}]"), at, f"{name}[{task}]")
        for task, setting in enumerate(settings)
    ]
    return {module: np.array([column[module] for column in columns]) for module in at}


def checked_setting(setting: Any, where: str) -> Setting:
    """A setting in plain numbers, lists and tables; Refusal if it is none."""
    if not isinstance(setting, Sequence | np.ndarray) or isinstance(setting, str):
        return _checked_number(setting, where)
    entries: Sequence[Any] = list(setting)
    if not entries:
        raise Refusal(f"{where}: an empty list; expected at least one number")
    if not any(isinstance(entry, Mapping) for entry in entries):
        return [_checked_number(entry, where) for entry in entries]
    return [_checked_condition(entry, where) for entry in entries]


def _checked_condition(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise Refusal(
            f"{where}: {entry!r} stands among conditions; write {{value: {entry}}} at "
            "the end for all other modules"
        )
    for key in entry:
        if key not in ("filter", "value"):
            near = nearest(str(key), ("filter", "value"))
            meant = f"; did you mean {near!r}?" if near else ""
            raise Refusal(f"{where}: a condition has no {key!r}{meant}")
    if "value" not in entry:
        raise Refusal(f"{where}: a condition without its value")
    text = entry.get("filter")
    if text is not None and (not isinstance(text, str) or not text):
        raise Refusal(f"{where}: filter: expected a part of module names, got {text!r}")
    value = checked_setting(entry["value"], where)
    if isinstance(value, Sequence) and any(isinstance(x, Mapping) for x in value):
        raise Refusal(f"{where}: a condition inside of a condition")
    kept = {} if text in (None, _EVERYWHERE) else {"filter": text}
    return {**kept, "value": value}


def _checked_number(value: Any, where: str) -> float:
    plain = value.item() if isinstance(value, np.generic) else value
    if not number(plain):
        raise Refusal(
            f"{where}: expected a finite number, a list of numbers over the layers, or "
            "a list of conditions such as {filter: self_attn, value: 0.5}; got "
            f"{value!r}"
        )
    return float(plain)


def _column(
    setting: Setting, at: Mapping[str, float | None], where: str
) -> dict[str, float]:
    """The numbers of one task."""
    if isinstance(setting, Sequence) and isinstance(setting[0], Mapping):
        return _by_condition(setting, at, where)
    return {module: _at_depth(setting, t, module, where) for module, t in at.items()}


def _by_condition(
    conditions: Sequence[Mapping[str, Any]], at: Mapping[str, float | None], where: str
) -> dict[str, float]:
    for text in (entry.get("filter", "") for entry in conditions):
        if not any(text in module for module in at):
            near = nearest(text, {part for m in at for part in m.split(".")})
            meant = f"; did you mean {near!r}?" if near else ""
            raise Refusal(f"{where}: no module has {text!r} in its name{meant}")
    column = {}
    for module, t in at.items():
        fitting = [c for c in conditions if c.get("filter", "") in module]
        if not fitting:
            raise Refusal(
                f"{where}: no condition fits module {module!r}; end with one without a "
                "filter, {value: <number>}, for all others"
            )
        column[module] = _at_depth(fitting[0]["value"], t, module, where)
    return column


def _at_depth(setting: Any, t: float | None, module: str, where: str) -> float:
    if not isinstance(setting, Sequence):
        return setting
    if len(setting) == 1:
        return setting[0]
    if t is None:
        raise Refusal(
            f"{where}: module {module!r} lies in no layer, as its name has no number, "
            f"so it has no place between {setting[0]} and {setting[-1]}; give it a "
            f"number of its own, {{filter: {module.rpartition('.')[2]}, value: ..}}"
        )
    return float(np.interp(t * (len(setting) - 1), range(len(setting)), setting))


def varies(settings: Iterable[Any]) -> bool:
    """Whether one of the settings of some tasks is more than a number."""
    return any(isinstance(setting, Sequence | np.ndarray) for setting in settings)


def as_given(numbers: PerModule | None, name: str) -> PerModule | None:
    """Numbers of tasks as plain values, which a record can hold; a function as it is.

    Raises:
      Refusal: a setting that is none.
    """
    if numbers is None or callable(numbers):
        return numbers
    if isinstance(numbers, Mapping):
        return {
            module: tuple(_checked_number(x, f"{name} of {module!r}") for x in of_tasks)
            for module, of_tasks in numbers.items()
        }
    return tuple(
        checked_setting(setting, f"{name}[{task}]")
        for task, setting in enumerate(numbers)
    )
