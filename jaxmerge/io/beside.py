"""Trained weights that lie beside an adapter: named in a note, not read."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from jaxmerge.io.errors import listing
from jaxmerge.io.files import CONFIG_FILE, first_entries

_MOST = 10_000  # entries of a folder that are looked at
_WEIGHTS = re.compile(r".+\.(safetensors|bin|pt|pth|npz)")
_OF_TRAINING = re.compile(  # its state, the tokenizer, other copies of the adapter
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state"
    r"|recipe_state|tokenizer|vocab|sampler|dataloader)[\w.-]*"
    r"|adapter_model\.(safetensors|bin|pt)|adapter_\d+\.pt"
    r"|(phi|history)\.safetensors"
)


def left_out(folder: Path, read: Collection[str]) -> tuple[str, ...]:
    """What a reader should know about weights in the folder that are not read.

    Args:
      folder: an adapter folder.
      read: names of the files that are read.
    """
    try:
        found = first_entries(folder, _MOST)
    except OSError as error:
        return (f"what else the folder holds cannot be seen ({error.strerror})",)
    files = sorted(entry.name for entry in found if os.path.isfile(entry))
    weights = [
        name
        for name in files
        if name not in read
        and _WEIGHTS.fullmatch(name)
        and not _OF_TRAINING.fullmatch(name)
    ]
    notes = []
    if weights:
        notes.append(
            f"left out {listing(weights, 8)}: weights beside the adapter are not part "
            "of it, and not of a merge"
        )
    folders = sorted(entry.name for entry in found if os.path.isdir(entry))
    if "heads" in folders and any((folder / "heads").glob("*.safetensors")):
        notes.append(
            "left out 'heads': the saved modules of the tasks of which this adapter is "
            "a merge"
        )
    others = [
        name
        for name in folders
        if not name.startswith("checkpoint-")
        and os.path.lexists(folder / name / CONFIG_FILE)
    ]
    if others:
        notes.append(
            f"left out {listing(others, 8)}: further adapters in subfolders; give "
            "these folders too if they are meant"
        )
    return tuple(notes)
