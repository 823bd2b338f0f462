"""Files of the first LoRA trainer for diffusion (cloneofsimo/lora): numbered modules.

``unet:12:down`` is A and ``unet:12:up`` is B of the 13th adapted layer of the UNet in
the order of the trainer's model; the update is ``up @ down``. The header holds the rank
of each and the classes of layers that were searched (``["CrossAttention", ..]``), which
together with the model decide what the numbers mean. Vectors such as ``<s1>`` are
textual inversion tokens, which count as saved modules besides LoRA.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np

from jaxmerge.io.errors import AdapterError, show
from jaxmerge.io.image.image_keys import ImageKeys, refuse_key
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.tensors import TensorFile
from jaxmerge.untrusted.json_text import parse_json

_KEY = re.compile(r"(?P<module>\w+:\d+):(?P<part>down|up)")
_EMBEDDING = "<embed>"  # what the header says of a token


def recognises(keys: Collection[str]) -> bool:
    """Whether factors of numbered modules are among the tensor names."""
    return any(_KEY.fullmatch(key) for key in keys)


def sort_tensors(tensors: TensorFile, _options: ReadOptions) -> ImageKeys:
    """Sorts the tensors of a file; AdapterError for one that is not understood."""
    table, header = ImageKeys(), tensors.metadata
    for key in tensors.infos:
        match = _KEY.fullmatch(key)
        if match is not None:
            part = "A" if match["part"] == "down" else "B"
            table.enter(match["module"], part, key, tensors)
        elif header.get(key) == _EMBEDDING:
            table.heads[key] = key
        else:
            raise refuse_key(key, tensors)
    for model in sorted({module.partition(":")[0] for module in table.modules}):
        table.header[model] = _classes(header.get(model), model, tensors)
    return table


def to_tensors(
    modules: Mapping[str, Mapping[str, np.ndarray]], header: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and header of a file; its loaders scale by 1.

    Args:
      modules: module -> tensors by PEFT's name below it.
      header: model -> classes of layers, as `sort_tensors` found them.
    """
    found: dict[str, np.ndarray] = {}
    said = dict(header)
    numbers: dict[str, list[int]] = defaultdict(list)
    for module, parts in modules.items():
        model, _, number = module.partition(":")
        numbers[model].append(int(number))
        found[f"{module}:down"] = parts["lora_A.weight"]
        found[f"{module}:up"] = parts["lora_B.weight"]
        said[f"{module}:rank"] = str(parts["lora_A.weight"].shape[0])
    for model, there in numbers.items():
        missing = sorted(set(range(max(there) + 1)) - set(there))
        if missing:
            raise AdapterError(
                f"module '{model}:{missing[0]}' has no update, and a file of numbered "
                "modules needs all of them; merge adapters of which one adapts it"
            )
    return found, said


def _classes(value: str | None, model: str, tensors: TensorFile) -> str:
    """The classes of layers in one spelling, so that two files can be compared."""
    try:
        found = parse_json((value or "").encode())
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise AdapterError(
            f"{tensors.path}: the header says {show(value)} of {model!r}, expected the "
            "list of the classes of layers whose modules are numbered; save it again "
            "with the trainer"
        )
    return json.dumps(sorted(found))
