"""Reading and writing adapters: PEFT folders and orbax checkpoints."""

from jaxmerge.io.adapters import Adapters, Source
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.factors import Layout
from jaxmerge.io.read import load_peft
from jaxmerge.io.write import SaveReport, save_peft

__all__ = [
    "AdapterError",
    "Adapters",
    "Layout",
    "SaveReport",
    "Source",
    "load_peft",
    "save_peft",
]
