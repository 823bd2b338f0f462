"""The kinds of LoRA files of image models: how each is told, read and written.

One row of `KINDS` is all that the rest of the package needs to know of a kind. A merge
of adapters of one kind is written as that kind.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmerge.io.config import AdapterConfig
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.image import diffusers_file, kohya_file, numbered_file
from jaxmerge.io.image.image_config import ImageConfig
from jaxmerge.io.image.image_keys import ImageKeys, alpha_notes, read_alphas
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.tensors import TensorFile, open_tensors

_Tensors = Mapping[str, np.ndarray]
_Writer = Callable[
    [Mapping[str, _Tensors], Mapping[str, str]],
    tuple[dict[str, np.ndarray], dict[str, str]],
]
_SUFFIXES = (".safetensors", ".bin", ".pt")


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
      says: what such a file is, for messages.
      loader: which program's loader decides what a missing alpha means.
      file: name of the weight file that is written.
      recognises: whether tensor names hold factors of this kind.
      sort: the tensors of a file as `ImageKeys`.
      to_tensors: tensors and header of a file, from the tensors of each module by
        PEFT's names and from what the headers of the inputs say.
    """

    says: str
    loader: str
    file: str
    recognises: Callable[[Collection[str]], bool]
    sort: Callable[[TensorFile, ReadOptions], ImageKeys]
    to_tensors: _Writer


KINDS: dict[str, Kind] = {
    "kohya": Kind(
        says="a file of kohya's sd-scripts",
        loader="sd-scripts",
        file="kohya_lora.safetensors",
        recognises=kohya_file.recognises,
        sort=kohya_file.sort_tensors,
        to_tensors=kohya_file.to_tensors,
    ),
    "diffusers": Kind(
        says="a file of diffusers",
        loader="diffusers",
        file="pytorch_lora_weights.safetensors",
        recognises=diffusers_file.recognises,
        sort=diffusers_file.sort_tensors,
        to_tensors=diffusers_file.to_tensors,
    ),
    "numbered": Kind(
        says="a file of numbered modules (cloneofsimo/lora)",
        loader="their trainer",
        file="numbered_lora.safetensors",
        recognises=numbered_file.recognises,
        sort=numbered_file.sort_tensors,
        to_tensors=numbered_file.to_tensors,
    ),
}
WEIGHT_FILES = frozenset(kind.file for kind in KINDS.values())


def kind_of_keys(keys: Collection[str]) -> str | None:
    """The kind whose factors are among tensor names; None if it is none of them.

    >>> kind_of_keys(["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"])
    'kohya'
    """
    return next((name for name, kind in KINDS.items() if kind.recognises(keys)), None)


def kind_of_file(path: Path) -> str | None:
    """The kind of a weight file; None if it is none of these, or cannot be read."""
    if path.suffix not in _SUFFIXES or not path.is_file():
        return None
    try:
        return kind_of_keys(open_tensors(path).infos.keys())
    except AdapterError:
        return None


def sort_file(
    name: str, tensors: TensorFile, options: ReadOptions
) -> tuple[AdapterConfig, ImageKeys]:
    """The scales and the sorted tensors of a file; AdapterError if it is no plain LoRA.

    Alphas are read, the only tensors of which a plan needs the values.
    """
    kind = KINDS[name]
    table = kind.sort(tensors, options)
    config = ImageConfig(
        path=tensors.path,
        raw={"kind": name, "header": table.header},
        peft_type="LORA",
        alpha=options.assume_alpha,
        kind=name,
        alphas=read_alphas(table.alphas, table.modules.keys(), tensors),
        components=table.components,
        named=table.named,
    )
    table.notes += alpha_notes(table, kind.loader, options.assume_alpha)
    return config, table
