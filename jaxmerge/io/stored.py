"""Adapters on disk, whichever format they are in."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmerge.folders import Folder
from jaxmerge.io.bridges.opened_tree import check_has_trees
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.fields import PATH, TEXT, Fields, Items, check_fields
from jaxmerge.io.files import read_object
from jaxmerge.io.formats import RECORD_FILE, format_of, resolve
from jaxmerge.io.options import ReadOptions

if TYPE_CHECKING:
    from jaxmerge.io.adapters import Adapters

_INPUT = Fields({"path": PATH, "name": TEXT}, others=True)
_INPUTS = Fields({"inputs": Items(_INPUT, least=1)}, others=True)


def load_stored(path: Folder, **read: Any) -> "Adapters | dict[str, Any]":
    """Reads one PEFT folder, its heads included, or a folder of another format.

    Compressed adapters are restored.

    Args:
      path: the folder.
      **read: options of `jaxmerge.io.load_peft`; nothing is merged, so that no policy
        for saved modules is needed.
    """
    from jaxmerge.io.read import load_peft

    other = format_of(path)
    if other is not None:
        from jaxmerge.io.compressed_folder import CompressedAdapters

        given = {name: value for name, value in read.items() if name != "hub"}
        check_has_trees([Path(path)], ReadOptions(**given))
        found = resolve(other.load)(path)
        return found.restored() if isinstance(found, CompressedAdapters) else found
    if read.get("heads", "error") == "error":
        read = {**read, "heads": "keep"}
    return load_peft([path], **read)


def is_compressed(path: Folder) -> bool:
    """Whether a folder holds adapters that may come back only nearly as they were."""
    if format_of(path) is None:
        return False
    return read_object(Path(path) / RECORD_FILE).get("kind") == "compressed"


def recorded_inputs(folder: Path) -> tuple[list[Path], list[str]]:
    """Folders and names of the adapters that a merge was made of, from its record.

    Raises:
      AdapterError: no record, or an adapter that is no longer there.
    """
    path = folder / RECORD_FILE
    try:
        record = read_object(path)
        check_fields(record, _INPUTS, path)
    except AdapterError as error:
        raise AdapterError(
            f"{error}; it does not say of which adapters the merge was made, give "
            "their folders"
        ) from error
    found = [(Path(entry["path"]), entry["name"]) for entry in record["inputs"]]
    for place, name in found:
        if not place.exists():
            raise AdapterError(
                f"{place}: the adapter of {name} is not there; give the folders of all "
                "adapters, in the order of the merge"
            )
    return [place for place, _ in found], [name for _, name in found]
