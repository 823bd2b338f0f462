"""A base model and one adapter in, one full model out."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from jaxmerge.folders import Folder
from jaxmerge.jobs.bake_inputs import Given, read_changes
from jaxmerge.jobs.progress import Progress, silent
from jaxmerge.jobs.reading import ReadOptions, paths_of
from jaxmerge.refusals import Option, Refusal

if TYPE_CHECKING:
    from jaxmerge.io.base_model import BaseModel
    from jaxmerge.io.full_model import Losses, Target
    from jaxmerge.io.tied_weights import Tie

Tied = Literal["error", "untie", "together"]

_HALF = 0.5  # of an update, lost by rounding: worth a word


@dataclass(frozen=True)
class Baked:
    """A full model that was written.

    Attributes:
      path: its folder.
      change: weight -> Frobenius norm of its update over its own.
      cast_error: weight -> what rounding it once took, over the norm of its update, or
        over its own where it was replaced.
      replaced: weights that are those of the adapter's saved modules.
      added: weights that the base had not: new heads, and output layers that were tied.
      dtype: the floating dtype of most values.
      files: file name -> SHA-256.
      size: bytes of the files that were written.
      seconds: time of the whole job.
      notes: what a reader should know.
    """

    path: str
    change: dict[str, float]
    cast_error: dict[str, float]
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    dtype: str
    files: dict[str, str]
    size: int
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


def bake(
    adapter: Folder,
    *,
    base: Folder,
    out: Folder,
    head: Folder | None = None,
    new_heads: bool = False,
    tied: Tied = "error",
    dequantise: bool = False,
    dtype: str | None = None,
    task: str | None = None,
    force: bool = False,
    progress: Progress = silent,
    **read: Unpack[ReadOptions],
) -> Baked:
    """Adds an adapter to the weights of its base model: ``W + s B A``.

    The sum is formed in float32 and rounded once. Weights that the adapter saved whole
    take the place of those of the base; everything else of the base's folder but
    weights in other formats is copied. Files of the base are read and written a few
    rows at a time: memory is that of the adapter and about 120 MB, whatever the size
    of the model.

    Args:
      adapter: PEFT folder, a merge as weight deltas, or a checkpoint.
      base: Hugging Face folder of the model that the adapter was trained on, in
        safetensors, one file or shards with an index. Quantised weights are refused
        unless ``dequantise``.
      out: folder to create.
      head: safetensors file with further saved modules by name, such as
        ``merged/heads/cars.safetensors`` of a merge.
      new_heads: add saved modules that the base has not, such as the classifier of a
        model that was pretrained without one.
      tied: what becomes of an output layer that shares the weight of the embedding
        where the adapter changes one of the two: "error" refuses; "untie" gives each a
        weight of its own, which is what base and adapter compute; "together" changes
        the one weight that is stored, as PEFT's ``merge_and_unload`` does with LoRA.
      dequantise: take weights that bitsandbytes (4-bit nf4 and fp4, 8-bit), GPTQ or AWQ
        has quantised for the values that they stand for, as their library computes
        them. These were in the model that the adapter was trained on; the result is
        not quantised.
      dtype: "float32", "float16" or "bfloat16" for all floating weights; by default
        each keeps that of the base.
      task: name of the adapter to take from a checkpoint that holds several.
      force: replace ``out`` if it is a full model of this function and nothing else.
      progress: shows how far the job is.
      **read: see `jaxmerge.io.load_peft`; saved modules always come along.

    Returns:
      `Baked`.

    Raises:
      Refusal: a module that the base lacks, another shape, quantised weights, or
        whatever else cannot be added exactly; says what to do instead.
    """
    from jaxmerge.io.base_model import open_model
    from jaxmerge.io.full_model import copy_others, write_config, write_weights
    from jaxmerge.io.replaceable import MODEL, held_in
    from jaxmerge.io.staging import check_target, staged_folder
    from jaxmerge.io.tied_weights import find_tie
    from jaxmerge.jobs.merging import size_of

    clock, out = time.perf_counter(), Path(out)
    inputs = paths_of(adapter, base, head)
    place = {"force": force, "inputs": inputs, "kind": MODEL}
    check_target(out, **place)
    with progress("reading", 2) as advance:
        model = open_model(base, dequantise=dequantise)
        if held_in(model.folder, out):
            raise Refusal(f"{out}: lies in the base model; choose another folder")
        tie = find_tie(model)
        advance(1)
        given = read_changes(adapter, head, model, tie, task, read)
        target = _target(given, model, tie, tied, new_heads, dtype)
        advance(1)
    total = len(model.tensors.infos) + len(target.sources) + len(given.changes.new)
    with staged_folder(out, **place) as folder:
        left_out = copy_others(folder, model)
        with progress("writing weights", total) as advance:
            digests, losses = write_weights(folder, model, target, advance)
        write_config(folder, model, target)
        settings = {"tied": tied, "new_heads": new_heads, "dtype": dtype}
        if dequantise:
            settings["dequantise"] = True
        record = _record(given, model, settings)
        files = _write_record(folder, record, digests, losses)
        model.unchanged.refuse(model.files)
    return Baked(
        path=str(out),
        change=losses.change,
        cast_error=losses.cast_error,
        replaced=tuple(sorted(given.changes.replaced)),
        added=tuple(sorted((*target.sources, *given.changes.new))),
        dtype=str(target.dtype or model.dtype),
        files=files,
        size=size_of(out, files),
        seconds=time.perf_counter() - clock,
        notes=(*given.notes, *_notes(losses, left_out, model, target)),
    )


def _target(
    given: Given,
    model: "BaseModel",
    tie: "Tie | None",
    tied: Tied,
    new_heads: bool,
    dtype: str | None,
) -> "Target":
    """What is to be written, with what becomes of tied weights and new heads."""
    from jaxmerge.io.changes import together
    from jaxmerge.io.full_model import Target
    from jaxmerge.io.model_heads import config_with_head
    from jaxmerge.io.prepare import checked_dtype
    from jaxmerge.io.tied_weights import (
        check_unclear,
        is_tied,
        refuse_tied,
        untied,
    )

    if tied not in get_args(Tied):
        raise Refusal(
            Option("tied", str(tied), quoted=True),
            f": expected {', '.join(get_args(Tied))}",
        )
    wanted = None if dtype is None else checked_dtype(dtype)
    changes, config = given.changes, dict(model.config)
    new = changes.new
    if new and not new_heads:
        raise Refusal(
            f"{model.folder}: the adapter saved {', '.join(map(repr, sorted(new)))}, "
            "which this model has not; give the model that it was trained on, or pass ",
            Option("new_heads", "True"),
            " to add it",
        )
    if new:
        config = config_with_head(config, given.task_type, new)
    if tied != "together":
        check_unclear(model, changes.keys)
    touched = tie is not None and {tie.embedding, tie.head} & changes.keys
    if tie is None or not touched or not is_tied(model, tie):
        return Target(changes, {}, config, wanted)
    if tied == "error":
        refuse_tied(model, tie, changes.keys)
    if tied == "together":
        return Target(together(changes, tie, model.folder), {}, config, wanted)
    known = model.tensors.infos
    sources = {tie.head: tie.embedding, **tie.biases}
    sources = {key: source for key, source in sources.items() if key not in known}
    return Target(changes, sources, untied(config), wanted)


def _record(
    given: Given, model: "BaseModel", settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What a model was made from, as JSON values."""
    from jaxmerge.io.card import versions
    from jaxmerge.io.replaceable import MODEL_FORMAT

    base = {"path": str(model.folder), "sha256": model.sha256}
    return {
        "format": MODEL_FORMAT,
        "versions": versions(),
        "settings": dict(settings),
        "read_options": given.read_options,
        "inputs": given.inputs,
        "files": {"base": base, **given.files},
    }


def _write_record(
    folder: Path,
    record: Mapping[str, Any],
    weights: Mapping[str, str],
    losses: "Losses",
) -> dict[str, str]:
    """Writes the record and the card of a model; gives the SHA-256 of every file."""
    from jaxmerge.io.files import sha256
    from jaxmerge.io.formats import RECORD_FILE
    from jaxmerge.io.model_card import build_model_card
    from jaxmerge.io.replaceable import CARD_FILE, entries

    digests = {
        name: weights[name] if name in weights else sha256(folder / name)
        for name in entries(folder)
    }
    output = {"sha256": digests, **asdict(losses)}
    full = {**record, "output": output}
    text = json.dumps(full, indent=2) + "\n"
    (folder / RECORD_FILE).write_text(text, encoding="utf-8")
    (folder / CARD_FILE).write_text(build_model_card(full), encoding="utf-8")
    last = {name: sha256(folder / name) for name in (RECORD_FILE, CARD_FILE)}
    return {**digests, **last}


def _notes(
    losses: "Losses", left_out: tuple[str, ...], model: "BaseModel", target: "Target"
) -> Iterator[str]:
    from jaxmerge.io.errors import listing

    if model.quantised:
        yield (
            f"{len(model.quantised)} quantised weights were taken for the values that "
            "they stand for, and the result is not quantised"
        )
    if target.sources:
        yield (
            f"{listing(target.sources)} had no weight of its own and has one now; "
            "tie_word_embeddings is false in config.json"
        )
    if target.changes.new and _classes(target.config) == _classes(model.config):
        named = ", ".join(_classes(target.config)) or "no class"
        yield (
            f"config.json still names {named}, which may not have "
            f"{listing(target.changes.new)}; load the model with the class of its task"
        )
    if left_out:
        yield f"left out {listing(left_out)}: other weights, or no plain files"
    faint = [key for key, lost in losses.cast_error.items() if lost > _HALF]
    if faint:
        yield (
            f"rounding took more than half of the update of {listing(faint)}: it is "
            "smaller than the steps of the dtype; float32 keeps all of it"
        )


def _classes(config: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in config.get("architectures") or []]
