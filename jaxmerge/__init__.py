"""jaxmerge: merge LoRA adapters as pure JAX functions that jit, vmap and compose.

Start with `jaxmerge.types`: it defines the three levels, rules, mergers and posts.

Public names come from `jaxmerge.api`, loaded at the first use of one, so that the
command line can show its help without loading JAX.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmerge.api import *  # noqa: F403

__version__ = "0.1.0"

_FUNCTIONS_NAMED_LIKE_THEIR_MODULE = {"elect", "emr", "pico"}


class _Package(ModuleType):
    """This package: its modules, and behind them the names of `jaxmerge.api`."""

    def __getattr__(self, name: str) -> Any:
        missing = AttributeError(f"module 'jaxmerge' has no attribute {name!r}")
        if name.startswith("_") and name != "__all__":
            raise missing
        module = f"{__name__}.{name}"
        if name not in _FUNCTIONS_NAMED_LIKE_THEIR_MODULE and find_spec(module):
            return importlib.import_module(module)
        api = importlib.import_module(f"{__name__}.api")
        if not hasattr(api, name):
            raise missing
        setattr(self, name, getattr(api, name))
        return getattr(api, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # importing jaxmerge.pico would otherwise hide the function of that name
        hides = name in _FUNCTIONS_NAMED_LIKE_THEIR_MODULE
        if not (hides and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *self.__all__})


sys.modules[__name__].__class__ = _Package
