"""Names of an adapter's modules and those of a full model's tensors."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from jaxmerge.io.base_model import BaseModel
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.refusals import Option, nearest

_LEAVES = ("weight", "in_proj_weight")  # the second is that of torch's attention


class Front(NamedTuple):
    """How names of the adapter become names of the model: one part in front of all."""

    strip: str = ""
    add: str = ""
    known: Collection[str] = ()
    notes: tuple[str, ...] = ()

    def of(self, name: str) -> str:
        """A name of the adapter as the model has it."""
        if not (self.strip or self.add):
            return name
        if self.strip:
            return name.removeprefix(self.strip)
        new = self.add + name
        within = any(f"{new}{leaf}" in self.known for leaf in ("", ".weight", ".bias"))
        return new if within else name


def front_of(
    names: Sequence[str], shapes: Mapping[str, object], model: BaseModel
) -> Front:
    """The one change of the front of names with which every module is there.

    transformers stores a model with or without the name of its inner part in front of
    all (``transformer.`` of GPT-2), and reads both.
    """
    missing = [name for name in names if key_of(name, shapes) is None]
    if not missing:
        return Front()
    fronts = {key.partition(".")[0] + "." for key in shapes if "." in key}
    mine = {name.partition(".")[0] + "." for name in missing}
    found = [Front(strip=front) for front in mine - fronts if len(mine) == 1]
    found += [Front(add=front, known=shapes.keys()) for front in fronts - mine]
    found = [
        front
        for front in found
        if all(key_of(front.of(name), shapes) is not None for name in names)
    ]
    if len(found) != 1:
        return Front()
    note = (
        f"{model.folder}: its names have no {found[0].strip!r} in front, as those of "
        "the adapter do"
        if found[0].strip
        else f"{model.folder}: its names have {found[0].add!r} in front of those of "
        "the adapter"
    )
    return found[0]._replace(notes=(note,))


def key_of(module: str, shapes: Mapping[str, object]) -> str | None:
    """The tensor of a module to which its update is added."""
    plain = module.replace(".base_layer.", ".")
    keys = (f"{plain}.{leaf}" for leaf in _LEAVES)
    return next((key for key in keys if key in shapes), None)


def lacks(module: str, shapes: Mapping[str, object], model: BaseModel) -> AdapterError:
    """The error that a model has no weight of a module."""
    near = nearest(f"{module}.weight", list(shapes)[:20_000])
    says = f"; the nearest is {near!r}" if near else f"; it holds {listing(shapes)}"
    return AdapterError(
        f"{model.folder}: the adapter changes module {module!r}, of which this model "
        f"has no weight{says}. Give the model that the adapter was trained on, or put "
        "its names into the place of the adapter's with ",
        Option("strip_prefix", "<text>"),
        " and ",
        Option("add_prefix", "<text>"),
    )
