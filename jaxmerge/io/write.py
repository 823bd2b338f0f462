"""Merged updates -> one adapter folder that every loader scales right."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from jax.typing import ArrayLike

from jaxmerge.disk import share
from jaxmerge.folders import Folder
from jaxmerge.io.adapters import Adapters
from jaxmerge.io.card import build_card, build_record
from jaxmerge.io.errors import AdapterError, given, listing
from jaxmerge.io.files import CONFIG_FILE, digests, sha256
from jaxmerge.io.formats import RECORD_FILE
from jaxmerge.io.options import HeadPolicy, check_head_policy
from jaxmerge.io.output import Output, adapter_output, delta_output
from jaxmerge.io.prepare import (
    checked_biases,
    checked_dtype,
    checked_rank,
    checked_updates,
)
from jaxmerge.io.readback import verify_written
from jaxmerge.io.replaceable import CARD_FILE
from jaxmerge.io.safetensors_writer import SafetensorsWriter, in_file_order
from jaxmerge.io.saved_modules import Heads, head_files, merged_heads
from jaxmerge.io.serving import vllm_max_lora_rank
from jaxmerge.io.staging import folder_of_one
from jaxmerge.processes import fetched, of_first, several, together
from jaxmerge.refusals import Option
from jaxmerge.streamed import Streamed, described
from jaxmerge.types import LowRank, Update


@dataclass(frozen=True)
class SaveReport:
    """What `save_peft` wrote, and what it lost.

    Attributes:
      path: the folder.
      rank: largest rank in it; 0 for full-weight deltas.
      ranks: module -> rank of its tensors, padding included.
      energy: module -> share of the squared Frobenius norm kept by truncation.
      cast_error: module -> relative Frobenius error of the cast to ``dtype``.
      dtype: dtype of the tensors.
      files: file name -> SHA-256.
      omitted: modules of the inputs for which no update was given.
      max_lora_rank: what vLLM needs as ``--max-lora-rank``; None if it takes none.
    """

    path: str
    rank: int
    ranks: dict[str, int]
    energy: dict[str, float]
    cast_error: dict[str, float]
    dtype: str
    files: dict[str, str]
    omitted: tuple[str, ...]
    max_lora_rank: int | None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


@together()
def save_peft(
    out: Folder,
    updates: Mapping[str, Update],
    *,
    like: Adapters,
    rank: int | Literal["auto"] | None = None,
    energy: float | None = None,
    ragged: bool = False,
    dense: Literal["error", "truncate", "full"] = "error",
    dtype: Any = None,
    biases: Mapping[str, ArrayLike] | None = None,
    heads: HeadPolicy | Mapping[str, ArrayLike] | None = None,
    card: str | Mapping[str, Any] | None = None,
    extra_files: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    force: bool = False,
    inputs: Sequence[Folder] = (),
) -> SaveReport:
    """Writes merged updates as one adapter, reads it back, and only then shows it.

    The adapter has one rank for all modules (smaller ones are padded with zeros),
    ``lora_alpha = r`` and no rsLoRA, so that PEFT, vLLM and llama.cpp all apply
    ``b @ a`` as it is. Adapters of image models become a file of their own kind
    (`jaxmerge.io.image`), which diffusers, sd-scripts and ComfyUI scale alike.

    Args:
      out: folder to create.
      updates: module -> `LowRank` or dense array [m, n]; modules of ``like`` only.
        Streamed ones are made module by module while they are written.
      like: the adapters that were merged; gives layouts, base model and provenance.
      rank: truncate to this rank; "auto" is the largest rank among the inputs.
      energy: truncate to the smallest rank that keeps this share (0 < energy <= 1) of
        the squared Frobenius norm in every module.
      ragged: one rank per module, through ``rank_pattern`` and ``alpha_pattern``. PEFT
        and diffusers honour them; llama.cpp and MaxText do not. Of image models only
        kohya's files may be so, which sd-scripts and ComfyUI scale module by module,
        but diffusers (0.42) does not.
      dense: what to do with dense updates: "error"; "truncate" them to ``rank`` or
        ``energy``; "full" writes all updates as ``delta.safetensors``, which holds
        ``<module>.weight`` in the shape of the base weight, to be added to it.
      dtype: dtype of the tensors; by default the one that all inputs share, or float32.
      biases: module -> [m], merged LoRA biases; needed if the inputs have any.
      heads: policy for saved modules, by default the one they were loaded with, or a
        table of tensors by name.
      card: the recipe for README.md and ``jaxmerge.json``: the pipeline as text, or a
        mapping with "pipeline", "weights", "seed" and so on.
      extra_files: further safetensors files to write into the folder, by name.
      force: replace ``out`` if it is an adapter folder with nothing else in it.
      inputs: files and folders beside the adapters that must survive: ``out`` may not
        be or hold one of them.

    Returns:
      `SaveReport`.

    Raises:
      AdapterError: updates that do not fit ``like``, non-finite values, options that
        contradict each other, or a folder that cannot be written.
    """
    in_memory = not isinstance(updates, Streamed)
    updates = checked_updates(fetched(dict(updates)) if in_memory else updates, like)
    dtype = checked_dtype(like.dtype if dtype is None else dtype)
    rank_given, rank = rank, checked_rank(rank, energy, like)
    biases = checked_biases(biases, updates, like)
    policy, inside = _chosen_heads(heads, like)
    if _as_delta(updates, dense, truncated=rank is not None or energy is not None):
        if rank is not None or energy is not None or biases or inside:
            raise AdapterError(
                Option("dense", "full", quoted=True),
                " writes weight deltas: no ",
                Option("rank"),
                ", ",
                Option("energy"),
                ", LoRA biases or saved modules inside; use ",
                Option("heads", "keep", quoted=True),
                ", ",
                Option("biases", "{}"),
                " or ",
                Option("dense", "truncate", quoted=True),
            )
        output = delta_output(updates, like, dtype=dtype)
    else:
        output = adapter_output(
            updates,
            like,
            dtype=dtype,
            rank=rank,
            energy=energy,
            ragged=ragged,
            biases=biases,
            heads=inside,
        )
    output.files.update(head_files(like, policy))
    for name, tensors in (extra_files or {}).items():
        if name in (output.name, *output.files):
            raise AdapterError(f"{name!r} is a file of the adapter itself")
        output.files[name] = {key: np.asarray(value) for key, value in tensors.items()}
    settings = {
        "rank": rank_given,
        "energy": energy,
        "ragged": ragged,
        "dense": dense,
        "dtype": dtype.name,
        "heads": policy,
    }
    target = {"force": force, "inputs": [*(s.path for s in like.sources), *inputs]}
    files = _write_folder(out, output, settings, like=like, card=card, target=target)
    widest = max(output.ranks.values(), default=0)
    written = {module: output.written[module] for module in updates}
    return SaveReport(
        path=os.fspath(out),
        rank=widest,
        ranks=dict(output.ranks),
        energy={module: found.energy for module, found in written.items()},
        cast_error={module: found.cast_error for module, found in written.items()},
        dtype=dtype.name,
        files=files,
        omitted=tuple(sorted(like.stacks.keys() - updates.keys())),
        max_lora_rank=vllm_max_lora_rank(widest) if output.config else None,
    )


def _chosen_heads(
    heads: HeadPolicy | Mapping[str, ArrayLike] | None, like: Adapters
) -> tuple[str, Heads]:
    """The policy by name, and the heads that go into the adapter itself."""
    if isinstance(heads, Mapping):
        return "table", {name: np.asarray(value) for name, value in heads.items()}
    policy = like.options.heads if heads is None else heads
    check_head_policy(policy)
    return policy, merged_heads(like, policy)


def _as_delta(updates: Mapping[str, Update], policy: str, *, truncated: bool) -> bool:
    """Whether full-weight deltas are written; dense updates need a policy."""
    if policy not in ("error", "truncate", "full"):
        raise AdapterError(given("dense", policy), ": expected error, truncate or full")
    shapes = described(updates)
    full = [m for m, update in shapes.items() if not isinstance(update, LowRank)]
    if full and policy == "error":
        raise AdapterError(
            f"{len(full)} updates are dense ({listing(full)}), not of low rank; pass ",
            Option("dense", "truncate", quoted=True),
            " with ",
            Option("rank"),
            " or ",
            Option("energy"),
            ", ",
            Option("dense", "full", quoted=True),
            " to write weight deltas, or merge in core or KnOTS space",
        )
    if full and policy == "truncate" and not truncated:
        raise AdapterError(
            Option("dense", "truncate", quoted=True),
            " needs ",
            Option("rank", "<number>"),
            " or ",
            Option("energy", "<share>"),
        )
    return bool(full) and policy == "full"


def _write_folder(
    out: Folder,
    output: Output,
    settings: Mapping[str, Any],
    *,
    like: Adapters,
    card: str | Mapping[str, Any] | None,
    target: Mapping[str, Any],
) -> dict[str, str]:
    """Writes, reads back and compares, then renames; gives the SHA-256 of each file."""

    def finish() -> dict[str, str]:
        assert folder is not None  # it is asked of the process that writes
        for name, tensors in output.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            safetensors.numpy.save_file(
                {key: np.asarray(value, order="C") for key, value in tensors.items()},
                folder / name,
                metadata=dict(output.header),
            )
            share(folder / name)
        if output.config is not None:
            _write_json(folder / CONFIG_FILE, output.config)
        verify_written(folder, output)
        written = digests(folder)
        facts = {
            **settings,
            "kind": "adapter" if output.ranks else "delta",
            "sha256": written,
        }
        record = build_record(like, card, facts)
        _write_json(folder / RECORD_FILE, record)
        shares = {m: output.written[m].energy for m in output.ranks}
        (folder / CARD_FILE).write_text(build_card(record, shares), encoding="utf-8")
        last = {name: sha256(folder / name) for name in (RECORD_FILE, CARD_FILE)}
        found = {**written, **last}
        return {name: found[name] for name in sorted(found, key=Path)}

    with folder_of_one(out, **target) as folder:
        _write_weights(folder, output)
        return of_first(finish)


def _write_weights(folder: Path | None, output: Output) -> None:
    """Writes the weight file, every tensor when it is made.

    Making them may take several processes, so that one which does not write, or for
    which the disk takes no more, makes them too.
    """
    keys = iter(in_file_order(output.blanks))
    try:
        if folder is not None:
            how = (folder / output.name, output.blanks, output.header)
            with SafetensorsWriter(*how, hashed=False) as writer:
                for key in keys:
                    writer.write(output.tensor(key))
            share(folder / output.name)
    except OSError:
        _make(keys, output)
        raise
    _make(keys, output)


def _make(keys: Iterator[str], output: Output) -> None:
    """Makes tensors for other processes, which write them."""
    if several():
        for key in keys:
            output.tensor(key)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
