"""jaxmerge: merge LoRA adapters as pure JAX functions that jit, vmap and compose.

Start with `jaxmerge.types`: it defines the three levels, rules, mergers and posts.
All public names are listed in `jaxmerge.api`; they load at their first use, so that the
command line can show its help without loading JAX.
"""

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmerge.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module 'jaxmerge' has no attribute {name!r}")
    if find_spec(f"jaxmerge.{name}"):  # one module asks for another while it loads
        return import_module(f"jaxmerge.{name}")
    api = import_module("jaxmerge.api")
    if not hasattr(api, name):
        near = get_close_matches(name, api.__all__, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module 'jaxmerge' has no attribute {name!r}{meant}")
    globals()[name] = value = getattr(api, name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
