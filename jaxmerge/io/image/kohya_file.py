"""Files of kohya's sd-scripts: one name with underscores for each module.

``lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight`` is A, ``lora_up`` is
B, and the update is ``alpha / r * up @ down`` with alpha a tensor beside them. A
convolution has factors [r, n, h, w] and [m, r, 1, 1]; with ``lora_mid`` [r, r, h, w]
(LoCon) its A is ``mid`` applied behind ``down``. An underscore in a name stands for a
dot or for itself, so that names are kept as they are.
"""

import re
from collections.abc import Collection, Mapping

import numpy as np

from jaxmerge.io.errors import AdapterError
from jaxmerge.io.image.image_keys import ImageKeys, refuse_key
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.tensors import TensorFile

_KEY = re.compile(
    r"(?P<module>(?:lora|lycoris)_[^.]+)\."
    r"(?P<part>lora_down\.weight|lora_up\.weight|lora_mid\.weight|alpha)"
)
_PARTS = {
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
}
_LEAVES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


def recognises(keys: Collection[str]) -> bool:
    """Whether factors of kohya's are among the tensor names."""
    return any(_KEY.fullmatch(key) for key in keys if not key.endswith(".alpha"))


def sort_tensors(tensors: TensorFile, _options: ReadOptions) -> ImageKeys:
    """Sorts the tensors of a file; AdapterError for one that is not understood."""
    table = ImageKeys()
    for key in tensors.infos:
        match = _KEY.fullmatch(key)
        if match is None:
            raise refuse_key(key, tensors)
        table.enter(match["module"], _PARTS[match["part"]], key, tensors)
    return table


def to_tensors(
    modules: Mapping[str, Mapping[str, np.ndarray]], _header: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and header of a file, with alpha = r so that every loader scales by 1.

    diffusers (0.42) gives attention layers whose alpha is not the common one another
    scale, so that all loaders agree on files of one rank only.

    Args:
      modules: module -> tensors by PEFT's name below it.
    """
    found: dict[str, np.ndarray] = {}
    for module, parts in modules.items():
        for leaf, value in parts.items():
            if leaf not in _LEAVES:
                raise AdapterError(
                    f"module {module!r}: kohya's files have no place for {leaf}, a "
                    "bias or an embedding; leave it out, or write a diffusers file"
                )
            found[f"{module}.{_LEAVES[leaf]}"] = value
        rank = parts["lora_A.weight"].shape[0]
        found[f"{module}.alpha"] = np.asarray(rank, np.float32)
    return found, {}
