"""Reading and writing adapters: PEFT folders and orbax checkpoints.

`load_peft` and `plan_peft` read, `save_peft` writes; every refusal of bad input is an
`AdapterError` whose message names the file, the module and the remedy.
"""

from jaxmerge.io.adapters import Adapters, Source
from jaxmerge.io.checkpoint import load_orbax, save_orbax
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.factors import Layout
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.plan import Plan, plan_peft
from jaxmerge.io.read import load_peft
from jaxmerge.io.write import SaveReport, save_peft

__all__ = [
    "AdapterError",
    "Adapters",
    "Layout",
    "Plan",
    "ReadOptions",
    "SaveReport",
    "Source",
    "load_orbax",
    "load_peft",
    "plan_peft",
    "save_orbax",
    "save_peft",
]
