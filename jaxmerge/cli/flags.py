"""Options that several commands share.

Where the docstring of a command speaks of one, it says the help instead.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jaxmerge.cli import values
from jaxmerge.io.options import TaskType

# without a help of their own: every command says it
Count = Annotated[int, typer.Option(min=1)]
CountOrNone = Annotated[int | None, typer.Option(min=1)]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1)]
SeedOrNone = Annotated[int | None, typer.Option(min=0, max=2**32 - 1)]
FoldersOrNone = Annotated[list[Path] | None, typer.Argument(metavar="ADAPTER...")]
OutOrNone = Annotated[Path | None, typer.Option("--out", "-o")]
Pipeline = Annotated[str, typer.Option("--pipeline", "-p")]
Preference = Annotated[Any, typer.Option(metavar="P,P,...", parser=values.numbers)]
NamesOf = Annotated[Any, typer.Option(metavar="NAME,...", parser=values.names)]

Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="ADAPTER...", help="PEFT adapter folders, or files of image models."
    ),
]
Folder = Annotated[
    Path, typer.Argument(help="Folder written by jaxmerge merge or learn.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to create.")]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Replace the folder if it holds an adapter and nothing else."
    ),
]
Ragged = Annotated[
    bool, typer.Option("--ragged", help="Give each module its own rank (PEFT only).")
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Dtype of the output; that of the inputs unless given."),
]
TaskOfCheckpoint = Annotated[
    str | None,
    typer.Option(help="Name of the adapter to take from a checkpoint of several."),
]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="Work with the same command in other processes, as srun starts them.",
    ),
]

# the base model and what goes through it
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
LabeledFolder = Annotated[
    Path,
    typer.Option(
        help="Folder with the inputs of each task and their classes, numbers from 0 "
        f"(field label, for CLIP array labels): {DATA_FILES}"
    ),
]
Stats = Annotated[
    Path | None,
    typer.Option(help="Folder of `jaxmerge collect`, for steps that need it."),
]
Names = Annotated[
    Any,
    typer.Option(
        metavar="NAME,...",
        parser=values.names,
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
RowLimit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of rows of each file that are read, at even distances; all "
        "unless given.",
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
Temperature = Annotated[
    float, typer.Option(help="Temperature of the predictions that are compared.")
]

# of all commands
_SHOWING = "What is printed"
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
