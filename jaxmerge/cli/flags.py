"""Options that several commands share."""

import copy
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import typer

from jaxmerge.cli import values
from jaxmerge.io.options import HeadPolicy, Layout, TaskType, WeightFile

_READING = "Reading adapters"
_SHOWING = "What is printed"

Dtype = Literal["float32", "bfloat16", "float16"]

Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="ADAPTER...", help="PEFT adapter folders, or files of image models."
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to create.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        rich_help_panel=_SHOWING,
        help="Print one JSON document, also for an error.",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", rich_help_panel=_SHOWING, help="Print errors only."),
]
Distributed = Annotated[
    bool,
    typer.Option(
        help="Work with the same command in other processes, as srun starts them.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Replace the folder if it holds an adapter and nothing else."
    ),
]
BaseFolder = Annotated[
    Path,
    typer.Option(
        help="Hugging Face folder of the base model, as `hf download NAME --local-dir "
        "base` makes it."
    ),
]
DATA_FILES = (
    "<name>.jsonl (text_a and text_b, sentence1 and sentence2, premise and hypothesis, "
    "or text), gzipped or not, or a folder <name> with validation.jsonl; for CLIP "
    "<name>.npz with images [N, H, W, C], uint8 or normalised floats; for causal "
    "language models prompt and completion, or text."
)
DataFolder = Annotated[
    Path,
    typer.Option(
        help=f"Folder with the inputs of each adapter, labels ignored: {DATA_FILES}"
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Names of the tasks; those of the adapters' folders unless given.",
    ),
]
TextHeads = Annotated[
    Path | None,
    typer.Option(
        help="For CLIP: safetensors file with text vectors \\[classes, d] by the names "
        "of the tasks."
    ),
]
ModelType = Annotated[
    TaskType | None,
    typer.Option(
        "--task-type",
        help="What the adapters are of, classifiers or causal language models; what "
        "their configs say unless given.",
    ),
]
LogitScale = Annotated[
    float | None,
    typer.Option(
        help="Number that multiplies the logits; 1 for texts, for CLIP what the base "
        "stores, unless given."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of inputs of each task, at even distances; all unless given.",
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        parser=values.byte_count,
        metavar="BYTES",
        help="Bound of the memory for the adapters that are worked on at a time, such "
        "as 2GB; as little as possible unless given.",
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Number of inputs in the model at a time.")
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Number of tokens to which texts are cut; 128, for causal language models "
        "512, unless given.",
    ),
]


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


def numbers(text: str | None, option: str) -> list[float] | None:
    """Numbers separated by commas."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        pieces = [piece for piece in re.split(r"[^\w.+-]+", text) if piece]
        plain = len(pieces) > 1 and all(map(_is_number, pieces))
        hint = f"; write {','.join(pieces)}" if plain else ""
        raise typer.BadParameter(
            f"expected numbers separated by commas, got {text!r}{hint}",
            param_hint=option,
        ) from None


def refuse_loose_numbers(folders: list[Path], weights: str | None) -> None:
    """Refuses weights that stand apart, where the shell makes folders of them."""
    loose = [str(f) for f in folders if _is_number(str(f)) and not f.exists()]
    if loose:
        together = ",".join([*filter(None, [weights]), *loose])
        raise typer.BadParameter(
            f"{', '.join(loose)}: no such folder; if these are weights, write all of "
            f"them as one, --weights {together}",
            param_hint="--weights",
        )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text) is not None


def split(text: str | None) -> list[str] | None:
    """Names separated by commas."""
    return None if text is None else text.split(",")
