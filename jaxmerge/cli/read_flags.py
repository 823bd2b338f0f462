"""The options of reading adapters, as flags of a command."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import typer

from jaxmerge.cli import values
from jaxmerge.io.options import HeadPolicy, Layout, WeightFile

_READING = "Reading adapters"


def _read_options(
    heads: Annotated[
        HeadPolicy,
        typer.Option(
            metavar="POLICY",
            help="What becomes of saved modules besides LoRA, such as classifiers: "
            "error, keep, first or mean.",
        ),
    ] = "error",
    assume_alpha: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|rank",
            help="Value of lora_alpha where a config has none; 'rank' means a scale "
            "of 1.",
        ),
    ] = None,
    strip_prefix: Annotated[
        str, typer.Option(help="Text that is taken off the names of modules.")
    ] = "",
    add_prefix: Annotated[
        str, typer.Option(help="Text that is put in front of the names of modules.")
    ] = "",
    allow_different_bases: Annotated[
        bool,
        typer.Option(
            "--allow-different-bases",
            help="Accept configs that name different bases.",
        ),
    ] = False,
    allow_similar_names: Annotated[
        bool,
        typer.Option(
            "--allow-similar-names",
            help="Accept names that seem to be two names of one module.",
        ),
    ] = False,
    allow_zero: Annotated[
        bool, typer.Option("--allow-zero", help="Accept adapters that do nothing.")
    ] = False,
    weight_file: Annotated[
        WeightFile | None,
        typer.Option(help="Which weight file is read where a folder has both."),
    ] = None,
    ignore_config_key: Annotated[
        list[str] | None,
        typer.Option(help="Name of a config key that is harmless. Repeatable."),
    ] = None,
    vera_input: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE|NAME=SIZE",
            help="Input size of VeRA modules, for all or by name ending. Repeatable.",
        ),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(
            metavar="NAME",
            help="Layout of weight files without a config (diffusers); the JAX "
            "library whose checkpoint it is (nnx, qwix, tunix, maxtext-llama, "
            "maxtext-qwen, gemma or keras).",
        ),
    ] = None,
    lora_alpha: Annotated[
        list[str] | None,
        typer.Option(
            *("--lora-alpha", "--alpha"),
            metavar="ALPHA",
            help="Alpha of checkpoints of JAX libraries, which hold none: a number, "
            "'rank' for a scale of 1, or NAME=NUMBER by a pattern of names. "
            "Repeatable.",
        ),
    ] = None,
    scan_axis: Annotated[
        str | None,
        typer.Option(
            metavar="0|1|none",
            help="Axis of stacked layers in such a checkpoint, where shapes leave it "
            "open.",
        ),
    ] = None,
    hub: Annotated[
        bool,
        typer.Option(
            "--hub",
            help="Download adapters that are given as ids on the Hub, such as "
            "owner/name: configs and safetensors only.",
        ),
    ] = False,
) -> dict[str, Any]:
    """The options of `jaxmerge.io.load_peft` from their flags."""
    return {
        "heads": heads,
        "assume_alpha": values.alpha(assume_alpha, "--assume-alpha"),
        "strip_prefix": strip_prefix,
        "add_prefix": add_prefix,
        "allow_different_bases": allow_different_bases,
        "allow_similar_names": allow_similar_names,
        "allow_zero": allow_zero,
        "weight_file": weight_file,
        "ignore_config_keys": tuple(ignore_config_key or ()),
        "vera_inputs": values.vera_inputs(vera_input or []),
        "layout": layout,
        "hub": hub,
        "lora_alpha": values.alphas(lora_alpha or []),
        "scan_axis": scan_axis
        if scan_axis in (None, "none")
        else values.axis(scan_axis),
    }


for _flag in inspect.signature(_read_options).parameters.values():
    _flag.annotation.__metadata__[0].rich_help_panel = _READING


def with_read_options(
    command: Callable[..., None],
    *,
    heads: HeadPolicy = "error",
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[..., None]:
    """A command whose parameter ``read`` is filled from the flags of reading.

    Args:
      command: the command.
      heads: what ``--heads`` is unless given.
      fixed: options by name that the command itself decides; they have no flag.
    """
    flags = dict(inspect.signature(_read_options).parameters)
    flags["heads"] = flags["heads"].replace(default=heads)
    flags = {name: flag for name, flag in flags.items() if name not in fixed}
    signature = inspect.signature(command)
    own = [p for p in signature.parameters.values() if p.name != "read"]
    if any(parameter.name == "alpha" for parameter in own):
        flags["lora_alpha"] = _without_short_name(flags["lora_alpha"])

    @functools.wraps(command)
    def run(**given: Any) -> None:
        read = _read_options(**fixed, **{name: given.pop(name) for name in flags})
        command(read=read, **given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(kind=keyword) for p in (*own, *flags.values())]
    signed: Any = run  # typer reads these two
    signed.__signature__ = signature.replace(parameters=parameters)
    signed.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _without_short_name(flag: inspect.Parameter) -> inspect.Parameter:
    """The flag ``--lora-alpha`` of a command that has an ``--alpha`` of its own."""
    option = copy.copy(flag.annotation.__metadata__[0])
    option.param_decls = ()  # the first one is kept apart
    return flag.replace(annotation=Annotated[list[str] | None, option])
