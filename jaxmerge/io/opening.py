"""Opening one adapter: folder -> checked config and a spec of every module.

Only headers are read here, so that a plan costs nothing and a conflict between
adapters is found before any tensor is.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np

from jaxmerge.disk import Unchanged
from jaxmerge.folders import Folder
from jaxmerge.io.beside import left_out
from jaxmerge.io.bridges.opened_tree import check_has_trees, is_tree, open_folder
from jaxmerge.io.config import AdapterConfig, parse_config
from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.factors import FactorSpec
from jaxmerge.io.files import CONFIG_FILE, read_config, weight_file
from jaxmerge.io.foreign import format_of_keys
from jaxmerge.io.formats import format_of
from jaxmerge.io.frozen import frozen_copies, refuse_tied
from jaxmerge.io.hub_ids import Fetched, fetch, meant_as_id
from jaxmerge.io.image.naming import in_one_naming
from jaxmerge.io.keys import KeyTable, sort_keys
from jaxmerge.io.layouts import open_weight_file, open_without_config
from jaxmerge.io.module_specs import specs_of
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.places import adapter_place, naming_nested
from jaxmerge.io.prefixes import check_names, prefix_change
from jaxmerge.io.shards import open_weights
from jaxmerge.io.tensors import TensorFile
from jaxmerge.refusals import Option


@dataclass(frozen=True)
class OpenAdapter:
    """One adapter whose header has been read and checked.

    Attributes:
      folder: as the caller gave it.
      files: the files that make up the adapter.
      unchanged: they and others of the folder, since before they were opened.
      specs: module (renamed) -> spec.
      heads: saved non-LoRA tensors, name -> tensor key.
      copies: copies of frozen base weights, which are not read, name -> tensor key.
      notes: what reading changed or left out, for people.
      hub: its id on the Hub with a commit, if it was downloaded.
    """

    name: str
    folder: str
    files: tuple[Path, ...]
    unchanged: Unchanged
    config: AdapterConfig
    tensors: TensorFile
    specs: dict[str, FactorSpec]
    heads: dict[str, str]
    copies: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    hub: str | None = None


def open_adapters(
    folders: Sequence[Folder], options: ReadOptions, *, hub: bool = False
) -> list[OpenAdapter]:
    """Opens every folder; AdapterError for the first that cannot be read exactly.

    With ``hub`` ids on the Hub may stand in the place of folders, and are downloaded.
    """
    if isinstance(folders, str | os.PathLike):
        raise AdapterError(f"expected a list of adapter folders, found {folders!r}")
    if not folders:
        raise AdapterError("no adapter folder given")
    ids = [meant_as_id(folder) if hub else None for folder in folders]
    fetched = [None if named is None else fetch(named) for named in ids]
    places = [
        adapter_place(folder if found is None else found.path)
        for folder, found in zip(folders, fetched, strict=True)
    ]
    check_has_trees(places, options)
    names = task_names(
        [
            path if named is None else named.as_path
            for path, named in zip(places, ids, strict=True)
        ]
    )
    opened = [
        _open_adapter(name, path if found else folder, path, options, found)
        for name, folder, path, found in zip(
            names, folders, places, fetched, strict=True
        )
    ]
    return in_one_naming(opened)


def task_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Names of folders and files, with as many parents in front as make them unique.

    >>> task_names([Path("/runs/0/cars"), Path("/runs/1/cars"), Path("/runs/0/dtd")])
    ('0-cars', '1-cars', 'dtd')
    """
    places = [path.resolve() for path in paths]
    named = [place.with_suffix("") if place.is_file() else place for place in places]
    parts = [place.parts[1:] or ("adapter",) for place in named]
    names = {part: part[-1] for part in parts}
    for depth in range(2, max(map(len, parts)) + 1):
        counts = Counter(names.values())
        for part, name in names.items():
            if counts[name] > 1:
                names[part] = "-".join(part[-depth:])
    unique: list[str] = []
    for part in parts:  # one folder may be given twice
        endings = ("" if n == 1 else f"-{n}" for n in count(1))
        unique.append(next(n for e in endings if (n := names[part] + e) not in unique))
    return tuple(unique)


def _open_adapter(
    name: str,
    folder: Folder,
    path: Path,
    options: ReadOptions,
    fetched: Fetched | None,
) -> OpenAdapter:
    tree = is_tree(path)
    unchanged = Unchanged(_files_at(path, below=tree))
    opened = open_folder(path, options) if tree else _open_files(path, options)
    found = opened_adapter(name, folder, opened, options, unchanged=unchanged)
    files = [file.name for file in found.files]
    return replace(
        found,
        notes=(*found.notes, *_beside(path, files)),
        hub=None if fetched is None else str(fetched.pinned),
    )


def opened_adapter(
    name: str,
    folder: Folder,
    opened: tuple[AdapterConfig, TensorFile, KeyTable],
    options: ReadOptions,
    *,
    unchanged: Unchanged,
) -> OpenAdapter:
    """An adapter of which config, header and keys have been read.

    Args:
      name: its name.
      folder: where it is, as the caller gave it.
      opened: its config, its tensors and what they are.
      options: how it is read.
      unchanged: its files, since before they were opened.
    """
    config, tensors, table = opened
    if not table.modules:
        raise AdapterError(
            f"{tensors.path}: holds no LoRA tensors ({CONFIG_FILE} says it should); "
            "DeepSpeed ZeRO-3 and FSDP leave such a file where the shards were not "
            "gathered before saving"
        )
    _check_gathered(table, tensors)
    _check_wrapped(table, config)
    if config.ties_weights:
        refuse_tied(table, config.path)
    # whoever asks for saved modules gets these too
    copies = frozen_copies(table) if options.heads == "error" else {}
    specs = specs_of(table, tensors, config, options.vera_inputs)
    rename = prefix_change(
        [*specs, *table.heads],
        strip_prefix=options.strip_prefix,
        add_prefix=options.add_prefix,
    )
    for names in (specs, table.heads):
        check_names(names, [rename(n) for n in names], Path(folder), options)
    return OpenAdapter(
        name=name,
        folder=os.fspath(folder),
        files=tuple(dict.fromkeys(_files_of(config, tensors))),
        unchanged=unchanged,
        config=config,
        tensors=tensors,
        specs={rename(module): spec for module, spec in specs.items()},
        heads={rename(n): key for n, key in table.heads.items() if n not in copies},
        copies={rename(n): key for n, key in copies.items()},
        notes=(
            *table.notes,
            *_notes(copies, specs, tensors),
            *_missing(config, table),
        ),
    )


def _files_at(path: Path, *, below: bool) -> Iterator[Path]:
    """The file that was given, or those of a folder."""
    if path.is_file():
        return iter([path])
    return path.rglob("*") if below else path.iterdir()


def _files_of(config: AdapterConfig, tensors: TensorFile) -> tuple[Path, ...]:
    """The files of an adapter; none if it is in memory."""
    return (config.path, *tensors.files) if tensors.files else ()


def _notes(
    copies: Mapping[str, str], specs: Mapping[str, FactorSpec], tensors: TensorFile
) -> Iterator[str]:
    if copies:
        yield (
            f"left out {listing(copies)}: what PEFT saves of the frozen base beside "
            "LoRA on embeddings; if tokens were added to the base, add them before the "
            "merge is loaded"
        )
    wide = [
        module
        for module, spec in specs.items()
        if any(tensors.infos[k].dtype == np.float64 for k in spec.parts.values())
    ]
    if wide:
        yield (
            f"{len(wide)} of {len(specs)} modules are float64 and are rounded to "
            "float32, in which merges are computed: each value by up to 6e-8 of itself"
        )


def _beside(path: Path, files: Sequence[str]) -> tuple[str, ...]:
    """What lies beside the files in a folder; nothing, where a file was given."""
    return () if path.is_file() else left_out(path, files)


_CLASSIFIERS = {"classifier", "score"}  # PEFT lists both, and a model has one of them


def _missing(config: AdapterConfig, table: KeyTable) -> Iterator[str]:
    names = [f".{name}" for name in (*table.heads, *table.modules)]
    missing = [
        saved
        for saved in config.modules_to_save
        if not any(f".{saved}." in f"{name}." for name in names)
    ]
    pair = _CLASSIFIERS.issubset(config.modules_to_save)
    if pair and not _CLASSIFIERS.issubset(missing):
        missing = [saved for saved in missing if saved not in _CLASSIFIERS]
    if missing:
        yield (
            f"{CONFIG_FILE} lists {listing(missing)} as saved modules, of which "
            "the file holds nothing"
        )


def _open_files(
    path: Path, options: ReadOptions
) -> tuple[AdapterConfig, TensorFile, KeyTable]:
    if path.is_file():
        return open_weight_file(path, options)
    if not os.path.lexists(path / CONFIG_FILE):
        _refuse_other_format(path)
        with naming_nested(path):
            return open_without_config(path, options)
    config = parse_config(
        read_config(path),
        path / CONFIG_FILE,
        assume_alpha=options.assume_alpha,
        ignore_config_keys=options.ignore_config_keys,
    )
    with naming_nested(path):
        weights = weight_file(path, options.weight_file)
    tensors = open_weights(weights)
    foreign = format_of_keys(tensors.infos)
    if foreign:
        raise AdapterError(f"{tensors.path}: {foreign}")
    table = sort_keys(tensors.infos, tensors.path, config.modules_to_save)
    return config, tensors, table


def _refuse_other_format(path: Path) -> None:
    """Refuses a folder of this package that is no adapter by what it is."""
    other = format_of(path)
    if other is not None:
        raise AdapterError(
            f"{path}: is {other.says}, which may hold several adapters; make a PEFT "
            "folder of each first (`jaxmerge.convert`, with ",
            Option("task", "<name>"),
            ")",
        )


def _check_gathered(table: KeyTable, tensors: TensorFile) -> None:
    """Shards of a distributed run that were saved without what they stand for."""
    infos = tensors.infos
    empty = [name for name, key in table.heads.items() if 0 in infos[key].shape]
    for module, parts in table.modules.items():
        if any(infos[key].shape == (0,) for key in parts.values()):
            empty.append(module)
    if empty:
        raise AdapterError(
            f"{tensors.path}: {listing(empty)} is empty: the shards of a distributed "
            "run (DeepSpeed ZeRO-3, FSDP) were not gathered before saving; save the "
            "adapter again from gathered weights"
        )


def _check_wrapped(table: KeyTable, config: AdapterConfig) -> None:
    """The patterns of a config have to mean the same with and without wrappers."""
    for pattern in ("rank_pattern", "alpha_pattern"):
        for module, name in table.wrapped.items():
            found = {config.pattern_value(pattern, n) for n in (module, name)}
            if len(found) > 1:
                raise AdapterError(
                    f"{config.path}: a pattern of ranks or alphas matches only one of "
                    f"the names {module!r} and {name!r} of a module, with and without "
                    "the wrappers of its training, so its scale is unclear; correct "
                    "rank_pattern and alpha_pattern"
                )
