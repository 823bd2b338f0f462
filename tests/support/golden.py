"""Reader of the golden set: inputs and outputs of the official codes, as data."""

import functools
import json
from collections.abc import Callable
from typing import Any

import conditioning
import jax
import numpy as np
from reference import SHARED

import jaxmerge as jm

FOLDER = SHARED / "golden"
MISSING = f"golden set not found at {FOLDER}; set JAXMERGE_SHARED"
SINGLE_PRECISION = ("a_small", "d_hetero", "h_real")  # run in float32 as well
LEAST = {np.dtype(np.float64): 5e-6, np.dtype(np.float32): 2e-5}  # tolerances

SPACES = {  # where an official code works in another space than full space
    "core.knots": jm.knots_unscaled,
    "core.core": jm.core,
}


class Case:
    """Inputs of one case: T adapters for each module."""

    def __init__(self, name: str, facts: dict):
        self.name = name
        self.tasks: int = facts["T"]
        self.modules = list(facts["modules"])
        self.alphas: list[float] = facts["lora_alpha"]
        self.ranks: list[int] = facts["ranks"]
        self.entries: dict[str, Entry] = {}
        self._file = facts["file"]

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(FOLDER / self._file, allow_pickle=False) as archive:
            return dict(archive)

    @functools.cache  # noqa: B019 - ten cases, kept for the whole run
    def stacks(self, dtype=np.float64, scaled=False) -> dict[str, jm.AdapterStack]:
        """Adapters by module; ``scaled`` folds lora_alpha / r into b."""
        stacks = {}
        for module in self.modules:
            pairs = []
            for t, (alpha, rank) in enumerate(
                zip(self.alphas, self.ranks, strict=True)
            ):
                b = self.arrays[f"in/B/{module}/{t}"].astype(np.float64)
                a = self.arrays[f"in/A/{module}/{t}"]
                pairs.append((b * (alpha / rank) if scaled else b, a))
            stack = jm.stack_adapters(pairs, dtype=dtype, name=module)
            stacks[module] = jax.tree.map(np.asarray, stack)
        return stacks

    @functools.cache  # noqa: B019
    def coordinates(self, space: jm.Space, dtype=np.float64, scaled=False):
        """Module -> the coordinates [T, p, q] in a space, and its basis."""
        stacks = self.stacks(dtype, scaled)
        return {name: project(space, stack) for name, stack in stacks.items()}


class Entry:
    """One output of an official code; its hyper-parameters are read with ``[]``."""

    def __init__(self, case: Case, name: str, facts: dict):
        self.case, self.name, self.facts = case, name, facts
        self.id = f"{case.name}:{name}"
        self.family: str = facts["family"]
        self.modules = case.modules
        self.space: jm.Space = SPACES.get(self.family, jm.full)
        self.status: str = facts.get("dW_status", "raises")
        self.raises: str | None = facts.get("official_code_raises")
        updates, others = facts.get("dW", {}), facts.get("aux", {})
        self._keys = {f"dW/{module}": key for module, key in updates.items()}
        self._keys |= {name: array["key"] for name, array in others.items()}
        self.unread = set(self._keys)

    def __getitem__(self, hyper_parameter: str):
        return self.facts["hparams"][hyper_parameter]

    def get(self, hyper_parameter: str, default=None):
        return self.facts["hparams"].get(hyper_parameter, default)

    @property
    def dtypes(self) -> tuple:
        """Precisions in which to evaluate this entry."""
        single = self.case.name in SINGLE_PRECISION
        return (np.float64, np.float32) if single else (np.float64,)

    def has(self, name: str) -> bool:
        return name in self._keys

    @property
    def has_dw(self) -> bool:
        return any(name.startswith("dW/") for name in self._keys)

    @property
    def quantities(self) -> set[str]:
        """Names of the arrays beside dW, without the modules."""
        return {name.split("/")[0] for name in self._keys} - {"dW"}

    def tolerance(self, dtype=np.float64, moves: float = 0) -> float:
        """Relative Frobenius tolerance for dW.

        The set suggests ten times the noise of the official code, which is known. That
        of ours is not: in single precision it is another one on every processor, within
        the bound for a result that rounding ``moves``, relative to it, so far.
        """
        if np.dtype(dtype) == np.float64:
            return self.facts["suggested_rel_fro_tol"]
        bound = least(dtype) + conditioning.rounding(moves)
        return max(self.facts["suggested_rel_fro_tol_f32"], bound)

    def tolerance_of(self, name: str, dtype=np.float64) -> float:
        """The same rule for another array: ten times the noise of the official one.

        Infinite where the array is arbitrary, not only ill-conditioned.
        """
        facts = self.facts["aux"][name]
        noise = max(facts.get("unstable", {"f64": facts.get("f64_rel", 0)}).values())
        return max(least(dtype), 10 * noise) if noise < 0.01 else np.inf

    def read(self, name: str) -> np.ndarray:
        """One array of the entry, ``quantity`` or ``quantity/module``, to compare."""
        self.unread.discard(name)
        return self.peek(name)

    def peek(self, name: str) -> np.ndarray:
        """One array of the entry, to compute with."""
        return self.case.arrays[self._keys[name]]

    def by_module(self, quantity: str) -> dict[str, np.ndarray]:
        return {module: self.read(f"{quantity}/{module}") for module in self.modules}

    def stacks(self, dtype=np.float64, scaled=False) -> dict[str, jm.AdapterStack]:
        return self.case.stacks(dtype, scaled)

    def coordinates(self, space: jm.Space, dtype=np.float64, scaled=False):
        return self.case.coordinates(space, dtype, scaled)

    def merge(
        self, merger: jm.Merger, dtype=np.float64, *, scaled=False, by=1.0, **extra
    ) -> dict[str, np.ndarray]:
        """``by`` times the update of a merger in every module; extra is traced.

        Build mergers once: each new one is compiled again.
        """
        return {
            name: np.asarray(_merge(merger, stack, float(by), extra))
            for name, stack in self.stacks(dtype, scaled).items()
        }

    def merge_in(
        self,
        space: jm.Space,
        rule: Callable[..., jax.Array],
        dtype=np.float64,
        *,
        scaled=False,
        by=1.0,
        each: Callable[[tuple[int, ...]], dict[str, Any]] | None = None,
        **extra,
    ) -> dict[str, np.ndarray]:
        """The same for a rule in a space, whose bases are computed once.

        ``each`` gives inputs that depend on the shape [T, p, q] of the coordinates.
        """
        merged = self.before_and_after(
            space, rule, None, dtype, scaled=scaled, by=by, each=each, **extra
        )
        return merged[0]

    def before_and_after(
        self,
        space: jm.Space,
        rule: Callable[..., jax.Array],
        post: jm.Post | None,
        dtype=np.float64,
        *,
        scaled=False,
        by=1.0,
        each: Callable[[tuple[int, ...]], dict[str, Any]] | None = None,
        **extra,
    ) -> list[dict[str, np.ndarray]]:
        """Merges in a space without and, if there is one, with a post."""
        ranks = tuple(self.case.ranks)
        merged = {}
        for name, (matrices, basis) in self.coordinates(space, dtype, scaled).items():
            inputs = extra | (each(matrices.shape) if each else {})
            steps = (space, rule, ranks, post)
            merged[name] = _merge_in(*steps, matrices, basis, float(by), inputs)
        return [
            {name: np.asarray(merged[name][i]) for name in merged}
            for i in range(1 if post is None else 2)
        ]

    def check(
        self,
        updates: dict,
        dtype=np.float64,
        tolerance: float | None = None,
        moves: Callable[[str], float] | None = None,
    ) -> None:
        """Asserts that our updates are the official ones, and of the right type.

        ``moves`` gives for a module how far rounding moves its update, of which
        `conditioning` knows.
        """
        assert list(updates) == self.modules
        for module, official in self.by_module("dW").items():
            assert updates[module].dtype == dtype
            what = f"{self.id} dW/{module} in {np.dtype(dtype)}"
            wanted = tolerance
            if wanted is None:
                single = moves is not None and dtype == np.float32
                relative = moves(module) / np.linalg.norm(official) if single else 0
                wanted = self.tolerance(dtype, relative)
            assert_close(updates[module], official, wanted, what)


def official_shape(entry: Entry, matrices: jax.Array) -> tuple[int, int]:
    """(p, q) of the space of an official code, where KnOTS has no null directions."""
    _, p, q = matrices.shape
    if entry.space is jm.knots_unscaled:
        p = int(np.sum(np.any(np.asarray(matrices) != 0, axis=(0, 2))))
    return p, q


def official_directions(entry: Entry, matrices: jax.Array) -> int:
    """How many directions of each task the official TSV-M takes."""
    return int(min(official_shape(entry, matrices)) / entry.case.tasks)


@functools.partial(jax.jit, static_argnums=0)
def _project(space, stack):
    return space.project(stack)


def project(space: jm.Space, stack: jm.AdapterStack):
    """Coordinates of the adapters of one module, and the basis, in host memory."""
    return jax.tree.map(np.asarray, _project(space, stack))


@functools.partial(jax.jit, static_argnums=0)
def _merge(merger, stack, by, extra):
    return jm.dense(jm.scale(merger(stack, **extra), by=by))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _merge_in(space, rule, ranks, post, matrices, basis, by, extra):
    update = space.rebuild(rule(matrices, ranks=ranks, **extra), basis)
    updates = [update] if post is None else [update, post(update)]
    return [jm.dense(jm.scale(update, by=by)) for update in updates]


@functools.partial(jax.jit, static_argnums=1)
def truncated(update, rank):
    """The best approximation of an update of a rank, dense."""
    return jm.dense(jm.truncate(update, rank=rank))


def distance(ours, official) -> float:
    """Relative Frobenius distance; absolute where the official array is zero."""
    ours, official = np.asarray(ours, np.float64), np.asarray(official, np.float64)
    assert ours.shape == official.shape, (ours.shape, official.shape)
    return float(np.linalg.norm(ours - official) / (np.linalg.norm(official) or 1))


def assert_close(ours, official, tolerance: float, what: str = "") -> None:
    assert tolerance <= conditioning.WIDEST, f"{what}: {tolerance:.2e} asserts nothing"
    found = distance(ours, official)
    assert found <= tolerance, f"{what}: {found:.2e} from official, not {tolerance:.2e}"


def least(dtype) -> float:
    """The smallest tolerance that the set suggests for results in a precision."""
    return LEAST[np.dtype(dtype)]


@functools.cache
def manifest() -> dict:
    return json.loads((FOLDER / "manifest.json").read_text())


@functools.cache
def every_entry() -> tuple[Entry, ...]:
    """All entries of the set, in its order; none where the set is missing."""
    if not (FOLDER / "manifest.json").is_file():
        return ()
    everything = []
    for name, facts in manifest()["cases"].items():
        case = Case(name, facts)
        for title, entry in facts["entries"].items():
            case.entries[title] = Entry(case, title, entry)
        everything += case.entries.values()
    return tuple(everything)
