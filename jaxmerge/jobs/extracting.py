"""Two full models in, the adapter between them out."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from jaxmerge.folders import Folder
from jaxmerge.jobs.low_rank import Factors, Method, Wanted, factorise
from jaxmerge.jobs.progress import Advance, Progress, silent
from jaxmerge.jobs.reading import paths_of
from jaxmerge.refusals import Option, Refusal

if TYPE_CHECKING:
    from jaxmerge.io import Adapters, Layout, SaveReport
    from jaxmerge.io.differences import Compared, Pair

Others = Literal["error", "save", "skip"]


@dataclass(frozen=True)
class Extracted:
    """An adapter that was found between two models.

    Attributes:
      saved: what was written; ``saved.energy`` is the share of the squared norm of the
        difference that the adapter keeps, module by module.
      ranks: module -> number of directions, before padding.
      whole: weights that were saved whole.
      skipped: weights that differ and were left out -> norm of their difference.
      seconds: time of the whole job.
      size: bytes of the files that were written.
      notes: what a reader should know.
    """

    saved: "SaveReport"
    ranks: dict[str, int]
    whole: tuple[str, ...]
    skipped: dict[str, float]
    seconds: float
    size: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            **self.saved.to_json(),
            "ranks": self.ranks,
            "whole": list(self.whole),
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "bytes": self.size,
            "notes": list(self.notes),
        }


def extract(
    tuned: Folder,
    *,
    base: Folder,
    out: Folder,
    rank: int | None = None,
    energy: float | None = None,
    ragged: bool = False,
    others: Others = "error",
    save: Sequence[str] = (),
    method: Method = "auto",
    seed: int = 0,
    base_name: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Extracted:
    """Finds the LoRA adapter with which a base model is nearest to a tuned one.

    Of every weight ``W' - W`` the leading directions are kept, which is the best
    approximation of their number. The models are read weight by weight: memory is that
    of the adapter, of the largest weight in both models and about 2.5 times that of its
    difference in float32; more where that is decomposed exactly.

    Args:
      tuned: Hugging Face folder of the tuned model.
      base: that of the model which it was tuned from.
      out: adapter folder to create.
      rank: number of directions of every module, less where its difference has less.
      energy: in its place: keep the fewest directions that hold this share of the
        squared norm of every difference.
      ragged: give each module its own rank; otherwise smaller ones are padded.
      others: what becomes of weights that differ and are no low-rank update, such as
        norms, biases, new heads and tied embeddings: "error" refuses and names them;
        "save" puts their modules whole into the adapter; "skip" leaves them out.
      save: modules that are saved whole in any case, by the ends of their names, such
        as ``["classifier"]``.
      method: "exact" decomposes every difference whole, "randomised" finds its leading
        directions from products with thin matrices, "auto" does the first where a
        weight is small or the rank is large.
      seed: of what is drawn for it.
      base_name: ``base_model_name_or_path`` of the adapter, such as its id on the Hub;
        by default the path of ``base``.
      dtype: of the adapter: "float32" (default), "float16" or "bfloat16".
      force: replace ``out`` if it is an adapter folder with nothing else in it.
      progress: shows how far the job is.

    Returns:
      `Extracted`.

    Raises:
      Refusal: models that do not fit each other or are equal, weights that cannot be
        held as asked for, or options that contradict each other.
    """
    from jaxmerge import io
    from jaxmerge.io.base_model import open_model
    from jaxmerge.io.differences import compare
    from jaxmerge.io.prepare import checked_dtype
    from jaxmerge.io.staging import check_target
    from jaxmerge.jobs.merging import size_of
    from jaxmerge.types import LowRank

    clock, out = time.perf_counter(), Path(out)
    inputs = paths_of(tuned, base)
    check_target(out, force=force, inputs=inputs)
    wanted = _wanted(rank, energy, method, seed, others)
    to_dtype = checked_dtype(dtype or "float32")
    compared = compare(open_model(base), open_model(tuned), save)
    with progress("comparing weights", len(compared.pairs)) as advance:
        found = _found(compared, wanted, others, advance)
    kept = {module: factors.energy for module, factors in found.factors.items()}
    settings = {"rank": rank, "energy": energy, "others": others, "save": list(save)}
    settings |= {"method": method, "seed": seed}
    like = _like(found, compared, str(base) if base_name is None else base_name)
    base_files = {"path": str(base), "sha256": compared.base.sha256}
    saved = io.save_peft(
        out,
        {m: LowRank(stack.b[0], stack.a[0]) for m, stack in like.stacks.items()},
        like=like,
        ragged=ragged,
        dtype=to_dtype,
        heads=found.whole,
        card={
            "extracted": settings,
            "energy_kept": kept,
            "files": {"base": base_files},
        },
        force=force,
        inputs=inputs,
    )
    return Extracted(
        saved=replace(saved, energy=kept),
        ranks={module: f.b.shape[1] for module, f in found.factors.items()},
        whole=tuple(sorted(found.whole)),
        skipped=found.skipped,
        seconds=time.perf_counter() - clock,
        size=size_of(out, saved.files),
        notes=tuple(_notes(found, compared)),
    )


@dataclass(frozen=True)
class _Found:
    """What differs: in low rank, saved whole, and left out."""

    factors: dict[str, Factors]
    layouts: dict[str, "Layout"]
    whole: dict[str, np.ndarray]
    skipped: dict[str, float]


def _wanted(
    rank: int | None, energy: float | None, method: Method, seed: int, others: Others
) -> Wanted:
    if (rank is None) == (energy is None):
        raise Refusal(
            *("give either ", Option("rank", "<number>"), " or "),
            *(Option("energy", "<share>"), ", which decides the rank"),
        )
    if rank is not None and rank < 1:
        raise Refusal(Option("rank", str(rank)), ": expected a positive number")
    if energy is not None and not 0 < energy <= 1:
        raise Refusal(Option("energy", str(energy)), ": expected a share in (0, 1]")
    for name, value, kinds in (
        ("method", method, get_args(Method)),
        ("others", others, get_args(Others)),
    ):
        if value not in kinds:
            option = Option(name, str(value), quoted=True)
            raise Refusal(option, f": expected {', '.join(kinds)}")
    return Wanted(rank, energy, method, seed)


def _found(
    compared: "Compared", wanted: Wanted, others: Others, advance: Advance
) -> _Found:
    """Goes through the weights: first those that no update can hold."""
    found = _Found({}, {}, {}, {})
    refused: list[tuple[Pair, np.ndarray]] = []
    for pair in compared.pairs:
        difference = compared.difference(pair)
        if difference is not None and pair.layout is None:
            refused.append((pair, difference))
        elif pair.layout is not None:
            _check_others(refused, compared, others)
            if difference is not None:
                turned = pair.layout.kind == "embedding" or pair.layout.fan_in_fan_out
                matrix = difference.reshape(len(difference), -1)
                matrix = matrix.T if turned else matrix
                found.factors[pair.module] = factorise(matrix, wanted, pair.module)
                found.layouts[pair.module] = pair.layout
        advance(1)
    _check_others(refused, compared, others)
    if not found.factors:
        raise Refusal(
            f"{compared.tuned.folder}: no weight that an adapter can change differs "
            f"from that of {compared.base.folder}"
        )
    for pair, difference in refused:
        if others == "skip" and pair.reason != "to be saved":
            norm = np.linalg.norm(difference.astype(np.float64))
            found.skipped[pair.key] = float(norm)
        elif pair.module in found.factors:  # the bias of an adapted layer
            (_, value), *_ = compared.saved(pair)
            found.whole[f"{pair.module}.base_layer.bias"] = value
        else:
            found.whole.update(compared.saved(pair))
    return found


def _check_others(
    refused: Sequence[tuple["Pair", Any]], compared: "Compared", others: Others
) -> None:
    """Refuses weights that cannot be held, before anything is decomposed."""
    from jaxmerge.io.differences import savable

    names = compared.tuned.tensors.infos
    pairs = [pair for pair, _ in refused if pair.reason != "to be saved"]
    if others == "error" and pairs:
        raise Refusal(
            f"{compared.tuned.folder}: {len(pairs)} weights differ in a way that is no "
            f"low-rank update ({_named(pairs)}); pass ",
            Option("others", "save", quoted=True),
            " to put their modules whole into the adapter, or ",
            Option("others", "skip", quoted=True),
            " to leave them out",
        )
    wanted = [p for p, _ in refused if others == "save" or p not in pairs]
    parts = [pair for pair in wanted if not savable(pair, names)]
    if parts:
        raise Refusal(
            f"{compared.tuned.folder}: {_named(parts)} cannot be saved, because PEFT "
            "saves whole modules and these have further parts; pass ",
            Option("others", "skip", quoted=True),
            " to leave out all that is no low-rank update",
        )


def _named(pairs: Sequence["Pair"]) -> str:
    shown = ", ".join(f"{pair.key!r}: {pair.reason}" for pair in pairs[:4])
    return shown + (f" and {len(pairs) - 4} more" if pairs[4:] else "")


def _like(found: _Found, compared: "Compared", base_name: str) -> "Adapters":
    """What was found, as an adapter that was read from the tuned model."""
    from jaxmerge.io import Adapters, ReadOptions, Source
    from jaxmerge.stacks import stack_adapters

    tuned = compared.tuned
    source = Source(
        path=str(tuned.folder),
        config={},
        weight_file=tuned.tensors.path.name,
        sha256=tuned.sha256,
        base_model=base_name,
        revision=None,
        task_type=None,
        dtype="float32",
        scales={},
    )
    compared.base.unchanged.refuse(compared.base.files)
    tuned.unchanged.refuse(tuned.files)
    return Adapters(
        stacks={
            module: stack_adapters([(f.b, f.a)], name=module)
            for module, f in found.factors.items()
        },
        names=(tuned.folder.name or "tuned",),
        layouts=found.layouts,
        biases={},
        heads=({},),
        sources=(source,),
        options=ReadOptions(),
    )


def _notes(found: _Found, compared: "Compared") -> Iterator[str]:
    from jaxmerge.io.errors import listing

    if found.skipped:
        yield f"left out {listing(found.skipped)}, which differ between the models"
    if compared.only_base:
        yield f"only the base has {listing(compared.only_base)}"
    resized = [
        pair.key
        for pair in compared.pairs
        if pair.reason.startswith("[") and pair.key in found.whole
    ]
    if resized:
        yield (
            f"{listing(resized)} is of another shape than in the base, which has to be "
            "resized before the adapter is loaded"
        )
