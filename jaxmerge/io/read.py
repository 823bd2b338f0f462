"""PEFT folders, and files of image models -> `Adapters`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.folders import Folder
from jaxmerge.io.adapters import Adapters, Source
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.factors import Factors, common_dtype, read_factors
from jaxmerge.io.files import sha256
from jaxmerge.io.module_layout import merged_layout
from jaxmerge.io.opening import OpenAdapter, open_adapters
from jaxmerge.io.options import (
    Alpha,
    HeadPolicy,
    Layout,
    ReadOptions,
    ScanAxis,
    WeightFile,
)
from jaxmerge.io.survey import conflicts
from jaxmerge.io.tensors import FLOATING, finite
from jaxmerge.refusals import Option, Refusal
from jaxmerge.stacks import described_stack, stack_adapters
from jaxmerge.streamed import Streamed
from jaxmerge.types import AdapterStack


def load_peft(
    folders: Sequence[Folder],
    *,
    heads: HeadPolicy = "error",
    assume_alpha: float | Literal["rank"] | None = None,
    strip_prefix: str = "",
    add_prefix: str = "",
    allow_different_bases: bool = False,
    allow_similar_names: bool = False,
    allow_zero: bool = False,
    weight_file: WeightFile | None = None,
    ignore_config_keys: Sequence[str] = (),
    vera_inputs: int | Mapping[str, int] | None = None,
    layout: Layout | None = None,
    lora_alpha: Alpha | None = None,
    scan_axis: ScanAxis | None = None,
    hub: bool = False,
    stream: bool = False,
) -> Adapters:
    """Reads adapters: LoRA, rsLoRA, AdaLoRA and VeRA, exactly or not at all.

    Folders of PEFT are read, and files of diffusers and of kohya's sd-scripts
    (`jaxmerge.io.image`).

    Every module becomes ``b [T, m, R]`` and ``a [T, R, n]`` in float32 with its scale
    folded into b, so that the update of task t is ``b[t] @ a[t]`` whatever its rank,
    alpha, variant or file format was. Modules are taken from the tensor names; a task
    that lacks a module has rank 0 there.

    Args:
      folders: adapter folders (``adapter_config.json`` and ``adapter_model.*``), LoRA
        files of image models, or folders that hold one.
      heads: what becomes of saved modules besides LoRA when the merge is saved: "error"
        refuses to load them, "first" takes those of the first adapter that has any,
        "mean" averages them, "keep" writes one file per task.
      assume_alpha: lora_alpha for configs that have none; "rank" means a scale of 1.
      strip_prefix: taken off the names of modules and saved modules that start with
        it.
      add_prefix: put in the place of ``strip_prefix``; without that, in front of the
        names of every adapter that has none which starts with it.
      allow_different_bases: merge although ``base_model_name_or_path`` differs.
      allow_similar_names: merge although adapters seem to name one module in two ways.
      allow_zero: accept adapters whose every update is zero.
      weight_file: which file to read where a folder has both.
      ignore_config_keys: config keys that jaxmerge does not know but you know to be
        harmless.
      vera_inputs: input size of the modules of VeRA adapters, which their files do not
        hold: one number, or a table from name endings to numbers.
      hub: ids on the Hub, ``owner/name@revision:subfolder``, may stand in the place of
        folders; their configs and safetensors files are downloaded. Needs the extra
        ``hub``.
      layout: "diffusers" takes old diffusers attention processors for a PEFT adapter of
        the UNet, with the alpha of ``assume_alpha``, see `jaxmerge.io.layouts`; the
        name of a JAX library (`jaxmerge.io.bridges.table.BRIDGES`) says whose tree a
        checkpoint holds, where that decides the names of modules.
      lora_alpha: of checkpoints of JAX libraries, which hold none: a number as in their
        training, "rank" for a scale of 1, or a table of these by patterns of names.
      stream: do not keep the factors: ``stacks`` are `jaxmerge.streamed.Streamed`, and
        those of a module are read from the files when they are asked for. The files
        are read once now, to check them, and may not change afterwards.
      scan_axis: axis of stacked layers in such a checkpoint (0 or 1, or "none"), where
        shapes leave it open.

    Returns:
      `Adapters`.

    Raises:
      AdapterError: an input that cannot be read exactly or does not fit the others.
    """
    options = ReadOptions(
        heads=heads,
        assume_alpha=assume_alpha,
        strip_prefix=strip_prefix,
        add_prefix=add_prefix,
        allow_different_bases=allow_different_bases,
        allow_similar_names=allow_similar_names,
        allow_zero=allow_zero,
        weight_file=weight_file,
        ignore_config_keys=ignore_config_keys,
        vera_inputs=vera_inputs,
        layout=layout,
        lora_alpha=lora_alpha,
        scan_axis=scan_axis,
    )
    opened = open_adapters(folders, options, hub=hub)
    return load_opened(opened, options, stream=stream)


def load_opened(
    opened: Sequence[OpenAdapter], options: ReadOptions, *, stream: bool = False
) -> Adapters:
    """Reads opened adapters; AdapterError if they do not fit each other."""
    found = conflicts(opened, options)
    if found:
        more = f" (and {len(found) - 1} more conflicts)" if len(found) > 1 else ""
        raise AdapterError(*found[0].message, more)
    return assemble(opened, options, stream=stream)


def assemble(
    opened: Sequence[OpenAdapter], options: ReadOptions, *, stream: bool = False
) -> Adapters:
    """Reads the tensors of opened adapters that fit each other."""
    if not options.allow_different_bases:
        _check_copies(opened)
    modules = _read_all(opened, stream)
    zero = [
        [name for name, module in modules.items() if module.zero[task]]
        for task in range(len(opened))
    ]
    sources = [_source(a, names) for a, names in zip(opened, zero, strict=True)]
    for adapter, source in zip(opened, sources, strict=True):
        if not options.allow_zero and len(source.zero_modules) == len(adapter.specs):
            raise AdapterError(
                f"{source.path}: every update of this adapter is exactly zero ",
                "(untrained, or saved with the wrong weights); leave it out, or pass ",
                Option("allow_zero", "True"),
            )
    kept = {name: x for name, x in modules.items() if x.stack is not None}
    stacks = {name: x.stack for name, x in kept.items() if x.stack is not None}
    found = Adapters(
        stacks=_streamed(opened, stacks) if stream else stacks,
        names=tuple(adapter.name for adapter in opened),
        layouts={name: x.layout for name, x in kept.items()},
        biases={name: x.bias for name, x in kept.items() if x.bias is not None},
        heads=tuple(_read_heads(adapter) for adapter in opened),
        sources=tuple(_with_lost(source, modules.keys() - kept) for source in sources),
        options=options,
    )
    _refuse_changed(opened)
    return found


class _Module(NamedTuple):
    """What the files hold of one module.

    Attributes:
      zero: of each task, whether it adapts the module, but by nothing.
      stack: its adapters, or their shapes; None if none of them does anything.
      bias: [T, m] if there is one.
    """

    zero: tuple[bool, ...]
    stack: AdapterStack | None
    layout: Any
    bias: jax.Array | None


def _read_all(opened: Sequence[OpenAdapter], stream: bool) -> dict[str, _Module]:
    """Every module by name; the values of its factors only unless they are streamed."""
    found = {}
    for module in sorted({module for adapter in opened for module in adapter.specs}):
        rows = _rows(opened, module)
        zero = tuple(row is not None and row.is_zero for row in rows)
        rows = _that_do_something(rows)
        stack = bias = None
        if any(row is not None for row in rows):
            shapes = [None if row is None else (row.b, row.a) for row in rows]
            stack = (
                described_stack(shapes)
                if stream
                else stack_adapters(shapes, name=module)
            )
            if any(row is not None and row.bias is not None for row in rows):
                bias = _stack_biases(rows, stack.b.shape[1])
        layout = merged_layout(
            [a.specs[module].layout for a in opened if module in a.specs]
        )
        found[module] = _Module(zero, stack, layout, bias)
    return found


def _streamed(
    opened: Sequence[OpenAdapter], shapes: Mapping[str, AdapterStack]
) -> Streamed[AdapterStack]:
    """Adapters that are read again, a module at a time, from files that stay."""

    def read(modules: Sequence[str]) -> dict[str, AdapterStack]:
        stacks = {
            module: _stack_of(opened, module, shapes[module]) for module in modules
        }
        _refuse_changed(opened)
        return stacks

    return Streamed(([module] for module in shapes), read, lambda: shapes)


def _stack_of(
    opened: Sequence[OpenAdapter], module: str, shape: AdapterStack
) -> AdapterStack:
    """The adapters of a module, of which one is in memory beside the stack."""
    a, b = (np.zeros(x.shape, np.float32) for x in (shape.a, shape.b))
    for task in shape.present:
        spec, rank = opened[task].specs[module], shape.ranks[task]
        row = read_factors(spec, opened[task].tensors)
        a[task, :rank], b[task, :, :rank] = row.a, row.b
    return shape.replace(a=jax.device_put(a), b=jax.device_put(b))


def _rows(opened: Sequence[OpenAdapter], module: str) -> list[Factors | None]:
    """The factors of every task; None where it does not adapt the module."""
    specs = [(adapter.specs.get(module), adapter.tensors) for adapter in opened]
    return [None if spec is None else read_factors(spec, t) for spec, t in specs]


def _that_do_something(rows: Sequence[Factors | None]) -> list[Factors | None]:
    return [None if row is None or row.is_zero else row for row in rows]


def _refuse_changed(opened: Sequence[OpenAdapter]) -> None:
    """AdapterError if a file is not the one that was opened."""
    try:
        for adapter in opened:
            adapter.unchanged.refuse(adapter.files)
    except Refusal as error:
        raise AdapterError(*error.message) from error


def _with_lost(source: Source, lost: Collection[str]) -> Source:
    """A source that says which of its modules are in no merge."""
    mine = [module for module in source.zero_modules if module in lost]
    if not mine:
        return source
    note = f"left out {listing(mine)}: exactly zero wherever they are adapted"
    return replace(source, notes=(*source.notes, note))


def _check_copies(opened: Sequence[OpenAdapter]) -> None:
    """AdapterError if copies of one frozen base weight differ: so do the bases."""
    seen: dict[str, tuple[OpenAdapter, np.ndarray]] = {}
    for adapter in opened:
        for name, key in adapter.copies.items():
            values = adapter.tensors.read(key)
            first, other = seen.setdefault(name, (adapter, values))
            if values.dtype == other.dtype and not np.array_equal(values, other):
                raise AdapterError(
                    f"{adapter.folder}: its copy of the base weight {name!r} differs "
                    f"from that of {first.folder}, so they were trained on different "
                    "bases, or with tokens added apart; if that is meant, pass ",
                    Option("allow_different_bases", "True"),
                )


def _stack_biases(rows: Sequence[Factors | None], m: int):
    zero = np.zeros(m, np.float32)
    return jnp.stack(
        [jnp.asarray(zero if r is None or r.bias is None else r.bias) for r in rows]
    )


def _read_heads(adapter: OpenAdapter) -> dict[str, np.ndarray]:
    tensors, heads = adapter.tensors, {}
    for name, key in adapter.heads.items():
        values = tensors.read(key)
        checked = finite(values, tensors, key) if values.dtype in FLOATING else values
        heads[name] = checked if values.dtype.itemsize == 1 else values
    return heads


def _below(folder: str, path: Path) -> str:
    return path.name if path == Path(folder) else path.relative_to(folder).as_posix()


def _source(adapter: OpenAdapter, zero_modules: Sequence[str]) -> Source:
    config, specs = adapter.config, adapter.specs
    return Source(
        path=adapter.folder,
        config=dict(config.raw),
        weight_file=adapter.tensors.path.name,
        sha256={_below(adapter.folder, path): sha256(path) for path in adapter.files},
        base_model=config.base_model,
        revision=config.revision,
        task_type=config.task_type,
        dtype=common_dtype(spec.dtype for spec in specs.values()).name,
        scales={module: spec.scale for module, spec in specs.items()},
        zero_modules=tuple(sorted(zero_modules)),
        notes=adapter.notes,
        hub=adapter.hub,
        kind=config.kind,
    )
