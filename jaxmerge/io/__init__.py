"""Reading and writing adapters: PEFT folders, orbax, trees of JAX libraries.

`load_peft` and `plan_peft` read, `save_peft` writes; trees in memory come in by
`from_nnx` and its like and go back by `to_nnx`; statistics of inputs are files and
folders too (`save_statistics`, `open_statistics`). Every refusal of bad input is an
`AdapterError` whose message names the file, the module and the remedy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmerge.io.adapters import Adapters, Source
    from jaxmerge.io.bridges.public import (
        from_gemma,
        from_maxtext,
        from_nnx,
        from_qwix,
        from_tunix,
        to_gemma,
        to_maxtext,
        to_nnx,
        to_qwix,
        to_tunix,
    )
    from jaxmerge.io.compressed_folder import CompressedAdapters
    from jaxmerge.io.errors import AdapterError
    from jaxmerge.io.module_layout import Layout
    from jaxmerge.io.options import ReadOptions
    from jaxmerge.io.orbax import load_orbax, save_orbax
    from jaxmerge.io.plan import Plan, plan_peft
    from jaxmerge.io.read import load_peft
    from jaxmerge.io.statistics import load_moments, save_moments
    from jaxmerge.io.statistics_folder import StatisticsFolder, open_statistics
    from jaxmerge.io.statistics_saving import save_statistics
    from jaxmerge.io.write import SaveReport, save_peft

__all__ = [
    "AdapterError",
    "Adapters",
    "CompressedAdapters",
    "Layout",
    "Plan",
    "ReadOptions",
    "SaveReport",
    "Source",
    "StatisticsFolder",
    "from_gemma",
    "from_maxtext",
    "from_nnx",
    "from_qwix",
    "from_tunix",
    "load_moments",
    "load_orbax",
    "load_peft",
    "open_statistics",
    "plan_peft",
    "save_moments",
    "save_orbax",
    "save_peft",
    "save_statistics",
    "to_gemma",
    "to_maxtext",
    "to_nnx",
    "to_qwix",
    "to_tunix",
]

_HOMES = {  # loaded at first use: a plan needs neither JAX nor orbax
    "adapters": ("Adapters", "Source"),
    "bridges.public": (
        *("from_gemma", "from_maxtext", "from_nnx", "from_qwix", "from_tunix"),
        *("to_gemma", "to_maxtext", "to_nnx", "to_qwix", "to_tunix"),
    ),
    "compressed_folder": ("CompressedAdapters",),
    "errors": ("AdapterError",),
    "factors": ("Layout",),
    "options": ("ReadOptions",),
    "orbax": ("load_orbax", "save_orbax"),
    "plan": ("Plan", "plan_peft"),
    "read": ("load_peft",),
    "statistics": ("load_moments", "save_moments"),
    "statistics_folder": ("StatisticsFolder", "open_statistics"),
    "statistics_saving": ("save_statistics",),
    "write": ("SaveReport", "save_peft"),
}


if not TYPE_CHECKING:  # it would let any name pass

    def __getattr__(name: str) -> Any:
        for module, names in _HOMES.items():
            if name in names:
                home = import_module(f"jaxmerge.io.{module}")
                globals()[name] = value = getattr(home, name)
                return value
        raise AttributeError(f"module 'jaxmerge.io' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
