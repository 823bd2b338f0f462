"""Weights that lie in several files, as an index beside them lists."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxmerge.io.errors import AdapterError, listing, show
from jaxmerge.io.files import INDEX, checked_file, json_of
from jaxmerge.io.tensors import Described, TensorFile, open_tensors

_MOST_SHARDS = 1000


class ShardedFile:
    """The shards of one adapter or model as one table of tensors.

    The index and the shards must say the same: a shard that is missing, or a tensor
    that only one of them has, would be a part of the weights left out.

    Attributes:
      path: the index.
      files: the index and all shards.
      shards: file by file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, str] = {}
        places = _weight_map(path)
        listed: dict[str, set[str]] = {}
        for key, name in places.items():
            listed.setdefault(name, set()).add(key)
        self.shards: dict[str, TensorFile] = {
            name: open_tensors(checked_file(path.parent / name))
            for name in sorted(listed)
        }
        for name, shard in self.shards.items():
            different = sorted(listed[name] ^ set(shard.infos))
            if different:
                raise AdapterError(
                    f"{path}: lists other tensors in {name} than that file holds "
                    f"({listing(different)}); download or save it again"
                )
        self.files = (path, *(shard.path for shard in self.shards.values()))
        self._places = places
        self.infos: dict[str, Described] = {
            key: self.shards[name].infos[key] for key, name in places.items()
        }

    def holder(self, key: str, /) -> TensorFile:
        """The shard that holds a tensor."""
        return self.shards[self._places[key]]

    def read(self, key: str) -> np.ndarray:
        """The values of one tensor."""
        return self.holder(key).read(key)


def open_weights(path: Path) -> TensorFile:
    """Opens a weight file, or all shards of an index."""
    return ShardedFile(path) if path.suffix == ".json" else open_tensors(path)


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor -> file name, checked to name files beside the index."""
    index = json_of(path)
    places = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(places, dict) or not places:
        raise AdapterError(f"{path}: has no weight_map, which says where tensors are")
    suffix = Path(path.name.removesuffix(INDEX)).suffix
    names = set()
    for name in places.values():
        plain = isinstance(name, str) and re.fullmatch(r"[\w][\w.-]{0,200}", name)
        if not plain or not name.endswith(suffix):
            raise AdapterError(
                f"{path}: {show(name)} is not the name of a {suffix} file beside it"
            )
        names.add(name)
    if len(names) > _MOST_SHARDS:
        raise AdapterError(f"{path}: lists {len(names)} files, too many for a model")
    return places
