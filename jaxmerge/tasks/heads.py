"""The head of every task: saved by its adapter, or text vectors of its classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.folders import Folder
from jaxmerge.io import Adapters
from jaxmerge.io.errors import listing
from jaxmerge.io.tensors import SafetensorsFile, read_finite
from jaxmerge.models import head_from_hub
from jaxmerge.models.linear_head import TWO_LAYERS
from jaxmerge.refusals import Option, Refusal
from jaxmerge.tasks.base_layers import check_layers, refuse_biases, shape_of
from jaxmerge.tasks.bases import Base
from jaxmerge.tasks.task_types import CAUSAL
from jaxmerge.tasks.unlabeled import Unlabeled


def task_heads(
    base: Base, adapters: Adapters, vectors: Folder | None = None
) -> dict[str, Any]:
    """The head of every task, by name, as ``base.logits`` takes it.

    Empty for a causal language model, whose head is that of the base.

    Args:
      base: says where its heads come from.
      adapters: read with their heads.
      vectors: for CLIP, a file as `text_heads` reads it.

    Raises:
      ValueError: a head that is missing, or of the wrong kind of model.
    """
    if base.causal:
        if vectors is not None:
            raise Refusal(
                Option("text_heads", str(vectors), quoted=True),
                " are for CLIP; a causal language model brings its own head",
            )
        check_saved(adapters, base)
        return {}
    if base.head_module is not None:
        if vectors is not None:
            raise Refusal(
                Option("text_heads", str(vectors), quoted=True),
                " are for CLIP; the heads of a model of texts are those that the ",
                "adapters save",
            )
        return saved_heads(adapters, base)
    if vectors is None:
        raise Refusal(
            f"{base.folder}: a vision tower without heads; give ",
            Option("text_heads", "<file>"),
            f" with the text vectors of the classes of {', '.join(adapters.names)}",
        )
    for source, saved in zip(adapters.sources, adapters.heads, strict=True):
        if saved:
            raise Refusal(
                f"{source.path}: saves {listing(sorted(saved))}, which CLIP with text "
                "heads does not have; train without modules_to_save"
            )
    return text_heads(vectors, adapters.names)


def head_shape(head: Any) -> tuple[int, int]:
    """Classes and features of a head as `task_heads` gives it.

    >>> head_shape({"kernel": jnp.ones((8, 3))}), head_shape(jnp.ones((3, 8)))
    ((3, 8), (3, 8))
    """
    if not isinstance(head, dict):
        return head.shape
    first, last = (head.get(name, head) for name in TWO_LAYERS)
    return last["kernel"].shape[1], first["kernel"].shape[0]


def saved_heads(adapters: Adapters, base: Base) -> dict[str, dict[str, Any]]:
    """task -> the head that its adapter saved, as `head_logits` takes it.

    Args:
      adapters: read with their heads.
      base: says which module that is: "classifier" of BERT, "score" of Llama.

    Raises:
      ValueError: an adapter without this head, or with other saved modules, which the
        base model would lack.
    """
    heads, module = {}, base.head_module or ""
    for name, source, saved in zip(
        adapters.names, adapters.sources, adapters.heads, strict=True
    ):
        missing = [key for key in base.head_keys if key not in saved]
        if missing:
            causal = ("; of a causal language model say so by ", CAUSAL)
            raise Refusal(
                f"{source.path}: saves no head {missing[0]}, so the task has no "
                f"predictions; train it with modules_to_save=[{module!r}]",
                *(causal if module == "score" else ()),
            )
        try:
            heads[name] = head_from_hub(saved, module, layers=base.head_layers)
        except ValueError as error:
            raise Refusal(f"{source.path}: {error}") from None
    check_saved(adapters, base)
    return heads


def check_saved(adapters: Adapters, base: Base) -> None:
    """Refuses adapters that save modules of the model beside their head.

    Args:
      adapters: read with their heads.
      base: says which module is their head, if there is one to save; that of a causal
        language model belongs to the base.

    Raises:
      ValueError: a module in which the base with this adapter would differ from it.
    """
    own = {key for weight in base.head_keys for key in _with_bias(weight)}
    for source, saved in zip(adapters.sources, adapters.heads, strict=True):
        others = sorted(saved.keys() - own)
        if others:
            beside = "" if base.head_module is None else " beside its head"
            raise Refusal(
                f"{source.path}: saves {listing(others)}{beside}, but all tasks share "
                "the base model; train without modules of its own"
            )


def _with_bias(weight: str) -> tuple[str, str]:
    return weight, weight.removesuffix("weight") + "bias"


def check_adapters(base: Base, adapters: Adapters, inputs: Any) -> None:
    """Refuses adapters that do not fit a base, or change more of it than their updates.

    Args:
      base: the model; only traced.
      adapters: read with their heads.
      inputs: what the model reads, [N, ...].

    Raises:
      ValueError: as for `check_layers`, `check_saved` and `refuse_biases`.
    """
    check_layers(base, adapters, inputs)
    check_saved(adapters, base)
    refuse_biases(adapters)


def text_heads(path: Folder, tasks: tuple[str, ...]) -> dict[str, jax.Array]:
    """task -> vectors of its classes [C, d], from a safetensors file.

    Raises:
      ValueError: the file lacks a task, or holds something else than finite matrices
        without zero rows.
    """
    file = SafetensorsFile(Path(path))
    heads = {}
    for task in tasks:
        if task not in file.infos:
            known = listing(sorted(file.infos)) or "none"
            raise Refusal(f"{path}: no array {task!r} [classes, d]; it holds {known}")
        vectors = read_finite(file, task)
        if vectors.ndim != 2 or len(vectors) < 2 or not vectors.any(axis=1).all():
            raise Refusal(
                f"{path}: {task!r} {vectors.shape} is not a matrix [classes, d] of two "
                "classes or more, none of them zero"
            )
        heads[task] = jnp.asarray(vectors)
    return heads


def check_fit(
    base: Base,
    adapters: Adapters,
    heads: Mapping[str, Any],
    unlabeled: Unlabeled,
    *,
    with_heads: bool = False,
) -> None:
    """Refuses adapters and heads that do not fit the base, before any computation.

    Args:
      base: the model; only traced.
      adapters: of the base, as far as is known.
      heads: task -> head, see `task_heads`.
      unlabeled: inputs of every task.
      with_heads: see `check_layers`.

    Raises:
      Refusal: names the module and the nearest names, or the head.
    """
    refuse_biases(adapters)
    inputs = next(iter(unlabeled.inputs.values()))
    check_layers(base, adapters, inputs, with_heads=with_heads)
    for task, head in heads.items():
        features = shape_of(base.apply, base.params, unlabeled.inputs[task])
        _, width = head_shape(head)
        if width != features.shape[-1]:
            raise Refusal(
                f"the head of {task} reads {width} features, {base.folder} gives "
                f"{features.shape[-1]}"
            )
