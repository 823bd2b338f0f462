"""A merge of adapters of image models as one file of their kind."""

from collections.abc import Mapping

import numpy as np

from jaxmerge.io.adapters import Adapters
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.image.file_kinds import KINDS

_Tensors = Mapping[str, np.ndarray]


def image_file(
    modules: Mapping[str, _Tensors], heads: _Tensors, like: Adapters
) -> tuple[str, dict[str, np.ndarray], dict[str, str]]:
    """Name, tensors and header of the file.

    Args:
      modules: module -> its tensors by PEFT's names below it, scale folded in.
      heads: tensors besides LoRA that go into the file; only numbered modules have
        such, their textual inversion tokens.
      like: the adapters that were merged.
    """
    kind = KINDS[like.kind]
    tensors, header = kind.to_tensors(modules, _headers(like))
    if heads and like.kind != "numbered":
        raise AdapterError(
            f"{kind.says} has no place for {listing(heads)}, saved besides LoRA"
        )
    return (
        kind.file,
        {**tensors, **heads},
        {**header, **dict.fromkeys(heads, "<embed>")},
    )


def _headers(like: Adapters) -> dict[str, str]:
    """What the headers of the inputs say of their models; they agree."""
    return {
        name: value
        for source in like.sources
        for name, value in source.config.get("header", {}).items()
    }
