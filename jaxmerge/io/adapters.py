"""What reading gives: adapters in memory, and all that writing them back needs."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.io.factors import output_dtype
from jaxmerge.io.module_layout import Layout
from jaxmerge.io.options import ReadOptions
from jaxmerge.refusals import Option, Refusal
from jaxmerge.stacks import leave_out
from jaxmerge.streamed import Streamed, described
from jaxmerge.types import AdapterStack


@dataclass(frozen=True)
class Source:
    """Where one adapter came from.

    Attributes:
      path: folder as the caller gave it.
      config: its ``adapter_config.json``.
      weight_file: name of the weight file that was read.
      sha256: file name -> SHA-256 in hexadecimal, of every file that was read.
      base_model: ``base_model_name_or_path``, None if the config has none.
      revision: revision of the base model.
      task_type: PEFT's task type.
      dtype: common dtype of its factors; "float32" if they differ.
      scales: module -> factor that was folded into b.
      zero_modules: modules that the file holds but whose A or B is exactly zero; they
        count as absent (rank 0).
      notes: what reading changed or left out, for people.
      hub: ``owner/name@commit:subfolder``, if it was downloaded from the Hub.
      kind: of the file, "peft" or one of `jaxmerge.io.image.file_kinds.KINDS`.
    """

    path: str
    config: Mapping[str, Any]
    weight_file: str
    sha256: Mapping[str, str]
    base_model: str | None
    revision: str | None
    task_type: str | None
    dtype: str
    scales: Mapping[str, float]
    zero_modules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hub: str | None = None
    kind: str = "peft"


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Adapters:
    """T adapters of one base model, module by module.

    Attributes:
      stacks: module -> its T adapters, float32, LoRA scale folded into b; in memory, or
        `jaxmerge.streamed.Streamed`.
      names: T task names, the names of their folders made unique.
      layouts: module -> kind of layer and what is needed to write it back.
      biases: module -> [T, m], LoRA biases with the scale folded in; only modules that
        have any.
      heads: per task the saved non-LoRA tensors, by name without PEFT's prefix.
      sources: T records of provenance.
      options: how they were read; ``options.heads`` also says what becomes of the heads
        when a merged adapter is saved.
    """

    stacks: Mapping[str, AdapterStack]
    names: tuple[str, ...]
    layouts: dict[str, Layout]
    biases: dict[str, jax.Array]
    heads: tuple[dict[str, np.ndarray], ...]
    sources: tuple[Source, ...]
    options: ReadOptions = field(default_factory=ReadOptions)

    def task(self, name: str) -> "Adapters":
        """One of the adapters alone, with its own rank in every module.

        Raises:
          KeyError: there is no task of this name.
        """
        if name not in self.names:
            raise KeyError(f"no task {name!r}; there are {', '.join(self.names)}")
        t = self.names.index(name)
        stacks = {
            module: AdapterStack(
                a=stack.a[t : t + 1, : stack.ranks[t]],
                b=stack.b[t : t + 1, :, : stack.ranks[t]],
                ranks=(stack.ranks[t],),
            )
            for module, stack in self.stacks.items()
            if stack.ranks[t]
        }
        return replace(
            self,
            stacks=stacks,
            names=(name,),
            layouts={module: self.layouts[module] for module in stacks},
            biases={m: b[t : t + 1] for m, b in self.biases.items() if m in stacks},
            heads=(self.heads[t],),
            sources=(self.sources[t],),
        )

    def without(self, left_out: Iterable[str]) -> "Adapters":
        """The adapters without some tasks in some blocks, where they are then absent.

        Args:
          left_out: ``task@block``, a block being the name of a module, or what names
            begin with before a dot, such as ``cars@bert.encoder.layer.0``.

        Returns:
          The same tasks; without the modules in which none of them is left.

        Raises:
          Refusal: there is no such task or block.
        """
        tasks: dict[str, set[int]] = {}
        for entry in left_out:
            name, at, block = entry.partition("@")
            modules = [m for m in self.stacks if f"{m}.".startswith(f"{block}.")]
            if name not in self.names or not (at and modules):
                known = ", ".join(self.names)
                wrong = f"no task is named {name!r}, there are {known}"
                if not at:
                    wrong = "no block of the model"
                elif name in self.names:
                    wrong = f"no adapted module is {block!r} or lies in it"
                raise Refusal(
                    Option("leave_out", (entry,), quoted=True, listed=True),
                    f": {wrong}; write <task>@<block>",
                )
            for module in modules:
                tasks.setdefault(module, set()).add(self.names.index(name))
        if not tasks:
            return self
        stacks = _without(self.stacks, tasks)
        return replace(
            self,
            stacks=stacks,
            layouts={module: self.layouts[module] for module in stacks},
            biases={
                module: rows.at[jnp.asarray(sorted(tasks.get(module, ())), int)].set(0)
                for module, rows in self.biases.items()
                if module in stacks
            },
        )

    @property
    def kind(self) -> str:
        """The kind of file that all inputs are, in which a merge is saved."""
        return self.sources[0].kind if self.sources else "peft"

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading changed or left out, with the folder where it did."""
        return tuple(f"{s.path}: {note}" for s in self.sources for note in s.notes)

    @property
    def dtype(self) -> np.dtype:
        """The inputs' common dtype, in which a merge is saved by default."""
        return output_dtype(np.dtype(source.dtype) for source in self.sources)


def _without(
    stacks: Mapping[str, AdapterStack], tasks: Mapping[str, Collection[int]]
) -> Mapping[str, AdapterStack]:
    """Stacks without some tasks of some modules, where one is left."""

    def rest(module: str, stack: AdapterStack) -> AdapterStack | None:
        return leave_out(stack, tasks.get(module, ()))

    if not isinstance(stacks, Streamed):
        found = {module: rest(module, stack) for module, stack in stacks.items()}
        return {module: stack for module, stack in found.items() if stack is not None}
    shapes = {}
    for module, stack in described(stacks).items():
        gone = tasks.get(module, ())
        ranks = tuple(0 if t in gone else rank for t, rank in enumerate(stack.ranks))
        if any(ranks):
            shapes[module] = stack.replace(ranks=ranks)

    def read(modules: Sequence[str]) -> dict[str, AdapterStack]:
        found = {module: rest(module, stacks[module]) for module in modules}
        return {module: stack for module, stack in found.items() if stack is not None}

    return Streamed(([module] for module in shapes), read, lambda: shapes)
