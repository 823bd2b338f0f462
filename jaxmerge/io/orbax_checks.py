"""What an orbax checkpoint holds, against itself: ranks, layouts, scales, sources."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jaxmerge.doors import check_routed
from jaxmerge.io.adapters import Adapters, Source
from jaxmerge.io.compressed_folder import CompressedAdapters
from jaxmerge.io.config import AdapterConfig, parse_config
from jaxmerge.io.errors import AdapterError
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.module_layout import Layout
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.orbax_record import KINDS, dtype_named
from jaxmerge.refusals import Option, Refusal
from jaxmerge.types import AdapterStack, RoutedCores


def check_modules(modules: Mapping[str, Any], folder: Path) -> None:
    """AdapterError unless factors fit each other and the ranks of their stack."""
    for module, value in modules.items():
        if isinstance(value, AdapterStack):
            problem = _stack_problem(value)
        elif isinstance(value, RoutedCores):
            problem = _routed_problem(value)
        elif isinstance(value, tuple):
            b, a = (np.shape(x) for x in value)
            fits = len(b) == len(a) == 2 and b[1] == a[0]
            problem = "" if fits else f"factors {b} and {a} do not fit each other"
        else:
            problem = "" if value.ndim == 2 else f"{value.shape} is no matrix"
        if problem:
            raise AdapterError(f"{folder}: field modules.{module}: {problem}")


def check_compressed(value: CompressedAdapters, folder: Path) -> None:
    """AdapterError unless compressed adapters fit each other and their configs."""
    for module, problem in value.problems():
        raise AdapterError(f"{folder}: field modules.{module}: {problem}")
    check_adapters(value.described(), folder)


def check_adapters(adapters: Adapters, folder: Path) -> None:
    """AdapterError unless what a record says of adapters follows from their configs."""
    if adapters.kind != "peft":
        raise AdapterError(
            f"{adapters.sources[0].path}: a {adapters.kind} file of an image model; ",
            "checkpoints hold PEFT adapters, so make a PEFT folder of it first, with ",
            Option("to", "peft", quoted=True),
        )
    for field, problem in _problems(adapters):
        raise AdapterError(
            f"{folder}: field {field}: {problem}; {RECORD_FILE} does not fit what it "
            "describes, convert the adapter again"
        )


def _stack_problem(stack: AdapterStack) -> str:
    b, a = np.asarray(stack.b), np.asarray(stack.a)
    shapes, ranks = f"factors {b.shape} and {a.shape}", list(stack.ranks)
    if b.ndim != 3 or a.ndim != 3 or (b.shape[0], b.shape[2]) != a.shape[:2]:
        return f"{shapes} do not fit each other"
    if b.dtype != a.dtype or not jax.numpy.issubdtype(b.dtype, np.floating):
        return f"factors of dtypes {b.dtype} and {a.dtype}"
    if len(ranks) != b.shape[0] or max(ranks, default=0) > b.shape[2]:
        return f"ranks {ranks} do not fit {shapes}"
    for task, rank in enumerate(ranks):
        if b[task, :, rank:].any() or a[task, rank:].any():
            return f"ranks {ranks}, but task {task} has directions beyond {rank}"
    return ""


def _routed_problem(value: RoutedCores) -> str:
    try:
        check_routed(_routed_problem, value)
    except Refusal as error:
        return str(error).partition("got ")[2] + " do not fit each other"
    return ""


def _problems(adapters: Adapters) -> Iterator[tuple[str, str]]:
    """Field and what is wrong with it."""
    tasks = len(adapters.names)
    if len(set(adapters.names)) < tasks:
        yield "names", "names that are not different"
    for field in ("sources", "heads"):
        if len(getattr(adapters, field)) != tasks:
            yield field, f"{len(getattr(adapters, field))} for {tasks} names"
            return
    if adapters.layouts.keys() != adapters.stacks.keys():
        odd = sorted(adapters.layouts.keys() ^ adapters.stacks.keys())
        yield "layouts", f"{odd[0]!r} is in the layouts or the modules only"
        return
    for module, stack in adapters.stacks.items():
        if type(stack) is not AdapterStack or len(stack.ranks) != tasks:
            yield f"modules.{module}", f"is no stack of {tasks} adapters"
            return
        if not np.isfinite(stack.b).all() or not np.isfinite(stack.a).all():
            yield f"modules.{module}", "holds NaN or infinite values"
        problem = _layout_problem(adapters.layouts[module], stack)
        if problem:
            yield f"layouts.{module}", problem
    for module, bias in adapters.biases.items():
        expected = None
        if module in adapters.stacks:
            expected = (tasks, adapters.stacks[module].b.shape[1])
        if np.shape(cast("Any", bias)) != expected or not np.isfinite(bias).all():
            yield f"biases.{module}", f"is not of shape {expected} and finite"
    for index, source in enumerate(adapters.sources):
        for field, problem in _source_problems(adapters, index, source):
            yield f"sources[{index}].{field}", problem


def _layout_problem(layout: Layout, stack: AdapterStack) -> str:
    if len(layout.kernel) != KINDS[layout.kind]:
        return f"kernel {list(layout.kernel)} of a module of kind {layout.kind}"
    if stack.a.shape[2] % int(np.prod(layout.kernel, dtype=np.int64)):
        return f"kernel {list(layout.kernel)} for {stack.a.shape[2]} inputs"
    return ""


def _source_problems(
    adapters: Adapters, task: int, source: Source
) -> Iterator[tuple[str, str]]:
    """What one source says against its config and its factors."""
    ranks = {module: stack.ranks[task] for module, stack in adapters.stacks.items()}
    for module in (m for m in ranks if ranks[m] and m not in source.scales):
        yield "scales", f"has none of module {module!r}, which the adapter changes"
    for module in (m for m in ranks if not ranks[m] and m in source.scales):
        if module not in source.zero_modules:
            yield "zero_modules", f"lacks {module!r}, of rank 0 here"
    if adapters.options.layout is not None or not source.config:
        return  # there is no config
    try:
        config = _config_of(source, adapters.options)
    except AdapterError as error:
        yield "config", str(error)
        return
    for field in ("base_model", "revision", "task_type"):
        found, expected = getattr(source, field), getattr(config, field)
        if found != expected:
            yield field, f"is {found!r}, and {expected!r} in the config"
    for module in (m for m in ranks if ranks[m]):
        yield from _module_problems(adapters, task, config, module)


def _module_problems(
    adapters: Adapters, task: int, config: AdapterConfig, module: str
) -> Iterator[tuple[str, str]]:
    source, stack, options = (
        adapters.sources[task],
        adapters.stacks[module],
        adapters.options,
    )
    renamed = options.strip_prefix or options.add_prefix or source.notes
    if not renamed or not (config.rank_pattern or config.alpha_pattern):
        try:
            expected = config.scale(module, stack.ranks[task])
        except AdapterError as error:
            yield "config", str(error)
            return
        if source.scales.get(module) != expected:
            found = source.scales.get(module)
            yield "scales", f"of {module!r} is {found}, by the config {expected}"
    layout = adapters.layouts[module]
    flags = {False, None} if layout.kind != "linear" else {config.fan_in_fan_out, None}
    if layout.fan_in_fan_out not in flags:
        yield "config", f"another fan_in_fan_out than the layout of {module!r}"
    if config.peft_type == "LORA" and source.dtype in ("float16", "bfloat16"):
        a = np.asarray(stack.a[task])
        if not np.array_equal(a.astype(dtype_named(source.dtype)).astype(a.dtype), a):
            yield "dtype", f"{source.dtype} does not hold the factors of {module!r}"


def _config_of(source: Source, options: ReadOptions) -> AdapterConfig:
    return parse_config(
        source.config,
        Path(source.path) / RECORD_FILE,
        assume_alpha=options.assume_alpha,
        ignore_config_keys=options.ignore_config_keys,
    )
