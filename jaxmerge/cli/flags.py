"""Options that several commands share."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from jaxmerge.cli import values
from jaxmerge.io.options import TaskType

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
        "--distributed",
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
    "language models prompt and completion (or answer), or text."
)
DataFolder = Annotated[
    Path,
    typer.Option(
        help=f"Folder with the inputs of each adapter, labels ignored: {DATA_FILES}"
    ),
]
Stats = Annotated[
    Path | None,
    typer.Option(help="Folder of `jaxmerge collect`, for steps that need it."),
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
