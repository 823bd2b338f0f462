"""Tensor names of a LoRA file of an image model, sorted by what they hold."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxmerge.io.config import AdapterConfig
from jaxmerge.io.errors import AdapterError, listing, show
from jaxmerge.io.keys import LONGEST_NAME, KeyTable
from jaxmerge.io.options import checked_alpha
from jaxmerge.io.tensors import TensorFile

_EXTRACT = "merge it into its base and extract a plain LoRA from the difference"
_REFUSED = tuple(
    (re.compile(pattern), says)
    for pattern, says in {
        r".+\.hada_\w+(\..+)?": f"LoHa, whose update is no product B A; {_EXTRACT}",
        r".+\.lokr_\w+(\..+)?": f"LoKr, whose update is no product B A; {_EXTRACT}",
        r".+\.(on_input|ia3_l(\..+)?)": "(IA)3, which multiplies the base weight; "
        + _EXTRACT,
        r".+\.(dora_scale|(lora_magnitude_vector|magnitude)(\..+)?)": "DoRA rescales "
        f"the base weight, so its update depends on the base; {_EXTRACT}",
        r".+\.(oft_\w+|boft_\w+|rescale)(\..+)?": "OFT, which rotates the base weight; "
        + _EXTRACT,
        r".+\.[ab][12]\.weight": f"GLoRA, whose update depends on the base; {_EXTRACT}",
        r".+\.(diff|diff_b|w_norm|b_norm|set_weight)": "a full difference of weights, "
        "not factors; train without it, or extract a plain LoRA from it",
        r"(bundle_)?emb\w*\..+|emb_params": "a textual inversion embedding beside the "
        "LoRA; save the LoRA without its embeddings",
        r".+\.reft_.+": "ReFT, which changes activations; it is no update of weights",
    }.items()
)


@dataclass
class ImageKeys(KeyTable):
    """The tensors of one file, and where its scales are.

    Attributes:
      alphas: module -> tensor key of its alpha.
      components: component -> its config, from the header.
      named: module -> its name in the file, where that is another.
      header: what else the header says that a file of this kind needs, for its writer.
    """

    alphas: dict[str, str] = field(default_factory=dict)
    components: dict[str, AdapterConfig] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)

    def enter(self, module: str, part: str, key: str, tensors: TensorFile) -> None:
        """Adds a factor, or the tensor of an alpha (``part == "alpha"``)."""
        if len(module) > LONGEST_NAME:
            raise AdapterError(
                f"{tensors.path}: a tensor has a name of {len(key)} characters "
                f"({show(key)}); no module of a model is called that"
            )
        alpha = part == "alpha"
        table = self.alphas if alpha else self.modules.setdefault(module, {})
        name = module if alpha else part
        if name in table:
            raise AdapterError(
                f"{tensors.path}: {table[name]!r} and {key!r} are the same part of "
                f"module {module!r}; keep one of them"
            )
        table[name] = key


def refuse_key(key: str, tensors: TensorFile) -> AdapterError:
    """The error for a tensor that is no part of a plain LoRA; says what to do."""
    for pattern, says in _REFUSED:
        if pattern.fullmatch(key):
            return AdapterError(f"{tensors.path}: tensor {key!r} is of {says}")
    return AdapterError(
        f"{tensors.path}: tensor {key!r} is not understood; the file is of another "
        "kind, or of a variant that is not known here"
    )


def read_alphas(
    alphas: Mapping[str, str], modules: Collection[str], tensors: TensorFile
) -> dict[str, float]:
    """The alphas of the modules; each is a single number, read from its tensor."""
    found = {}
    for module, key in alphas.items():
        if module not in modules:
            continue
        info = tensors.infos[key]
        if int(np.prod(info.shape)) != 1:
            raise AdapterError(
                f"{tensors.path}: tensor {key!r} has shape {tuple(info.shape)}, and an "
                "alpha is one number; save the file again"
            )
        where = f"{tensors.path}: tensor {key!r}"
        found[module] = checked_alpha(float(tensors.read(key).ravel()[0]), where)
    return found


def alpha_notes(
    keys: ImageKeys, loader: str, assumed: float | str | None
) -> Iterable[str]:
    """What a reader should know of the scales of a file."""
    bare = [
        module
        for module in keys.modules
        if module not in keys.alphas and module.partition(".")[0] not in keys.components
    ]
    if bare:
        if len(bare) == len(keys.modules):
            where = "no module has an alpha"
        else:
            where = f"{len(bare)} of {len(keys.modules)} modules have no alpha"
        if isinstance(assumed, float | int):
            yield f"{where}: it is {assumed:g} there, as asked for"
        else:
            yield (
                f"{where}: it is their rank (a scale of 1), as {loader} loads such "
                "files"
            )
    lost = sorted(keys.alphas.keys() - keys.modules.keys())
    if lost:
        yield f"left out the alphas of {listing(lost)}, of which there are no factors"
