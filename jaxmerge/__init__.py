"""jaxmerge: merge LoRA adapters as pure JAX functions that jit, vmap and compose.

The main jobs, each from folders to a folder or a report, as the command line does them:

* `merge`: adapters into one adapter, by a pipeline such as ``"tsv|core|scale(0.2)"``;
* `learn`: the same with coefficients learned from inputs without labels;
* `tune`: scales, densities, weights and masks of a merge, by a loss or a score;
* `evaluate`: a merge on every task, beside the base and the own adapters;
* `check`: is each adapter, alone, better than its base;
* `collect`: statistics of inputs, for the merges that need them;
* `inspect`: norms, spectra, and what adapters have in common;
* `plan`: what a merge would meet, from headers alone;
* `cluster`: groups of adapters that are alike;
* `compress`: many adapters into one folder, in terms of what they share;
* `restore`: one of them out of it again;
* `convert`: PEFT folders to orbax checkpoints, and back;
* `bake`: an adapter into the weights of its base, as a full model;
* `extract`: the adapter between two full models;
* `verify`: computes a merged folder again from its own record;
* `run_recipe`: merges as a small file says, or as a merged folder was made;
* `push`: a merged folder to the Hub, when it is asked for.

The same in pieces: `jaxmerge.types` is the page to read first. It defines rules,
mergers, posts and merges of whole models, which compose as ``jax.vmap(jax.grad(f))``
does. `parse` makes a merge of text, `fit` learns coefficients through any Flax model,
``jaxmerge.io`` reads and writes adapters. All public names are listed in
`jaxmerge.api`; each loads at its first use.
"""

import ast
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import get_data
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what follows would let any name pass
    from jaxmerge import jobs as jobs
    from jaxmerge import learning as learning
    from jaxmerge import mergers as mergers
    from jaxmerge import spec as spec
    from jaxmerge import stats as stats
    from jaxmerge import types as types
    from jaxmerge.api import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module 'jaxmerge' has no attribute {name!r}")
        if find_spec(f"jaxmerge.{name}"):  # one module asks for another while it loads
            return import_module(f"jaxmerge.{name}")
        homes = _homes()
        if name == "__all__":
            return list(import_module("jaxmerge.api").__all__)  # in its order
        if name not in homes:
            from difflib import get_close_matches

            near = get_close_matches(name, homes, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"module 'jaxmerge' has no attribute {name!r}{meant}")
        globals()[name] = value = getattr(import_module(homes[name]), name)
        return value


@cache
def _homes() -> dict[str, str]:
    """Public name -> its module, as the imports of `jaxmerge.api` say.

    They are read and not run, so that one name does not load all the others.
    """
    source = get_data("jaxmerge", "api.py") or b""
    return {
        alias.name: node.module
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def __dir__() -> list[str]:
    dunders = [name for name in globals() if name.startswith("__")]
    return sorted([*dunders, *_homes()])
