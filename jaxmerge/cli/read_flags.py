"""The options of reading adapters, as flags of a command."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from jaxmerge.cli import values
from jaxmerge.cli.signature import flags_of
from jaxmerge.io.options import HeadPolicy, Layout, WeightFile


@dataclass(frozen=True)
class Reading:
    """How a command reads adapters.

    Attributes:
      heads: what ``--heads`` is unless given.
      without: options that the function of the library decides; they have no flag.
    """

    heads: HeadPolicy = "error"
    without: tuple[str, ...] = ()

    def flags(self, beside: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
        """The flags, in a command that has others of its own."""
        known = {flag.name: flag for flag in flags_of(_read_options)}
        known["heads"] = known["heads"].replace(default=self.heads)
        if any(flag.name == "alpha" for flag in beside):
            known["lora_alpha"].annotation.__metadata__[0].param_decls = ()
        return [flag for name, flag in known.items() if name not in self.without]


def as_tables(options: dict[str, Any]) -> dict[str, Any]:
    """Options with one value or table where a flag may be repeated.

    typer would make a list of it again.
    """
    found = dict(options)
    for name, flag, of in (
        ("lora_alpha", "--lora-alpha", values.alphas),
        ("vera_inputs", "--vera-input", values.input_sizes),
    ):
        if name in found:
            try:
                found[name] = of(found[name])
            except typer.BadParameter as error:
                error.param_hint = repr(flag)
                raise
    return found


def _read_options(
    *,
    heads: Annotated[HeadPolicy, typer.Option(metavar="POLICY")] = "error",
    assume_alpha: Annotated[
        Any, typer.Option(metavar="NUMBER|rank", parser=values.alpha)
    ] = None,
    strip_prefix: str = "",
    add_prefix: str = "",
    allow_different_bases: bool = False,
    allow_similar_names: bool = False,
    allow_zero: bool = False,
    weight_file: WeightFile | None = None,
    ignore_config_keys: Annotated[
        list[str] | None, typer.Option("--ignore-config-key")
    ] = None,
    vera_inputs: Annotated[
        list[str] | None, typer.Option("--vera-input", metavar="SIZE|NAME=SIZE")
    ] = None,
    layout: Annotated[Layout | None, typer.Option(metavar="NAME")] = None,
    lora_alpha: Annotated[
        list[str] | None, typer.Option("--lora-alpha", "--alpha", metavar="ALPHA")
    ] = None,
    scan_axis: Annotated[
        Any, typer.Option(metavar="0|1|none", parser=values.axis)
    ] = None,
    hub: bool = False,
) -> None:
    """The options of `jaxmerge.io.load_peft`.

    Reading adapters:
      heads: What becomes of saved modules besides LoRA, such as classifiers: error,
        keep, first or mean.
      assume_alpha: Value of lora_alpha where a config has none; 'rank' means a scale
        of 1.
      strip_prefix: Text that is taken off the names of modules.
      add_prefix: Text that is put in front of the names of modules.
      allow_different_bases: Accept configs that name different bases.
      allow_similar_names: Accept names that seem to be two names of one module.
      allow_zero: Accept adapters that do nothing.
      weight_file: Which weight file is read where a folder has both.
      ignore_config_keys: Name of a config key that is harmless. Repeatable.
      vera_inputs: Input size of VeRA modules, for all or by name ending. Repeatable.
      layout: Layout of weight files without a config (diffusers); the JAX library
        whose checkpoint it is (nnx, qwix, tunix, maxtext-llama, maxtext-qwen, gemma or
        keras).
      lora_alpha: Alpha of checkpoints of JAX libraries, which hold none: a number,
        'rank' for a scale of 1, or NAME=NUMBER by a pattern of names. Repeatable.
      scan_axis: Axis of stacked layers in such a checkpoint, where shapes leave it
        open.
      hub: Download adapters that are given as ids on the Hub, such as owner/name:
        configs and safetensors only.
    """
