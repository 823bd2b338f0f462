"""A Hugging Face folder as a pure function, by its ``model_type``."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxmerge.folders import Folder
from jaxmerge.io import Adapters
from jaxmerge.io.options import TaskType
from jaxmerge.models import (
    bert_apply,
    decoder_apply,
    head_logits,
    hub,
    load_bert,
    load_decoder,
    load_vision,
    vision_apply,
    vocabulary_head,
    with_taps,
    with_updates,
)
from jaxmerge.models.adapt import Apply
from jaxmerge.models.bert import PREFIXES
from jaxmerge.models.decoder import LM_HEAD
from jaxmerge.models.decoder_hub import ARCHITECTURES
from jaxmerge.models.linear_head import TWO_LAYERS, cosines
from jaxmerge.refusals import Option, Refusal
from jaxmerge.stacks import task_updates
from jaxmerge.stats.moments import Mask
from jaxmerge.tasks.images import PREPROCESSOR, pixel_normaliser
from jaxmerge.tasks.next_tokens import TOKENIZER_CONFIG, at_places, counted_inputs

Inputs = Literal["texts", "images"]


class Base(NamedTuple):
    """A base model without heads, or a causal language model with its own.

    Of a causal language model the features are the last hidden states of the tokens
    whose next one counts, [B, C, d], and ``vocabulary`` makes logits of them.

    Attributes:
      folder: where it lies.
      inputs: what it reads.
      config: its sizes, a ``BertConfig``, ``DecoderConfig`` or ``VisionConfig``.
      params: its parameters.
      apply: ``(params, inputs [B, ...]) -> features [B, d]``.
      logits: ``(head, features) -> [B, classes]``.
      head_module: module that adapters save as their head; None where heads are the
        text vectors of classes.
      head_layers: names of its linear layers; empty where it is one itself.
      logit_scale: what multiplies the logits; None if the folder does not tell.
      pad_id: number of the token that fills texts up.
      token_types: whether texts come with the number of their part.
      files: names of the files that were read.
      vocabulary: ``params -> [V, d]``, the head of a causal language model; None for
        models whose tasks have heads of their own.
    """

    folder: Path
    inputs: Inputs
    config: Any
    params: Any
    apply: Apply
    logits: Callable[[Any, jax.Array], jax.Array]
    head_module: str | None
    head_layers: tuple[str, ...]
    logit_scale: float | None
    pad_id: int
    token_types: bool
    files: tuple[str, ...]
    vocabulary: Callable[[Any], jax.Array] | None = None

    @property
    def causal(self) -> bool:
        """Whether it is a causal language model."""
        return self.vocabulary is not None

    @property
    def head_keys(self) -> tuple[str, ...]:
        """Names of the weights of a head that adapters save, without its biases."""
        layers = [f"{self.head_module}.{name}" for name in self.head_layers]
        modules = layers or [self.head_module] * (self.head_module is not None)
        return tuple(f"{module}.weight" for module in modules)

    def scale(self, given: float | None = None) -> float:
        """The factor of the logits: ``given``, or what the folder says.

        Raises:
          ValueError: neither says, or not a finite number above 0.
        """
        if given is not None and self.causal:
            raise Refusal(
                Option("logit_scale", str(given)),
                " is for heads of tasks; a causal language model has its own; leave it "
                "out",
            )
        scale = self.logit_scale if given is None else given
        if scale is None:
            raise Refusal(
                f"{self.folder}: stores no logit_scale; give ",
                Option("logit_scale", "<number>"),
                ", 100 for CLIP as OpenAI trained it",
            )
        if not 0 < scale < math.inf:
            stored = f"{self.folder}: the stored logit_scale"
            raise Refusal(
                stored if given is None else Option("logit_scale"),
                f" {scale}: expected a finite number above 0",
            )
        return scale


def load_base(folder: Folder, task_type: TaskType = "classification") -> Base:
    """Reads the base model of adapters.

    Models of texts, BERT and decoders as Llama, have the heads of sequence
    classification; ``clip`` and ``clip_vision_model`` read images and have zero-shot
    heads. Decoders are also read as causal language models, with their own head.

    Args:
      folder: with ``config.json`` and safetensors weights.
      task_type: what its adapters are of.

    Raises:
      ValueError: another ``model_type``, or a folder that its loader refuses.
    """
    folder = Path(folder)
    raw = hub.read_config(folder)
    return _kind_of(folder, raw, task_type).load(folder, raw)


def base_files(
    folder: Folder, task_type: TaskType = "classification"
) -> tuple[Inputs, tuple[str, ...]]:
    """What the base in a folder reads, and names of the files that `load_base` reads.

    Raises:
      ValueError: as for `load_base`, as far as ``config.json`` says.
    """
    raw = hub.read_config(folder)
    inputs = _kind_of(Path(folder), raw, task_type).inputs
    return inputs, _files(Path(folder), inputs, task_type)


def check_layers(base: Base, adapters: Adapters, inputs: Any) -> None:
    """Refuses adapters of layers that the base does not run, or that have other sizes.

    Args:
      base: the model; only traced.
      adapters: of the base, as far as is known.
      inputs: what it reads, [N, ...].

    Raises:
      ValueError: names the module and the nearest names, or both shapes.
    """
    if base.causal and LM_HEAD in adapters.stacks:
        raise Refusal(
            f"the adapters change {LM_HEAD}, but what is said of tokens here is said "
            "with the head of the base; train without it, or merge without a base"
        )
    updates = task_updates(adapters.stacks, 0)
    try:
        shape_of(with_updates(base.apply, updates), base.params, inputs)
    except ValueError as error:
        raise Refusal(
            f"{base.folder}: {error}; the adapters belong to another base, or need ",
            Option("add_prefix", "<text>"),
            " or ",
            Option("strip_prefix", "<text>"),
        ) from None


def refuse_biases(adapters: Adapters) -> None:
    """ValueError for biases of LoRA layers, which `with_updates` does not add."""
    if adapters.biases:
        raise Refusal(
            f"module {next(iter(adapters.biases))!r} has a LoRA bias, which is not "
            "added to the base model here; train without lora_bias"
        )


def token_mask(base: Base, inputs: Any, modules: Sequence[str]) -> Mask | None:
    """Which inputs of some layers count, as for `jaxmerge.collect_inputs`: no padding,
    and in a causal language model the tokens alone whose next one counts.

    Args:
      base: the model; only traced.
      inputs: what it reads, [N, ...].
      modules: names of layers; those after the pooling see no padding.
    """
    if base.inputs != "texts":
        return None
    _, taps = shape_of(with_taps(base.apply, modules), base.params, inputs)
    batch_and_tokens = len(inputs["attention_mask"].shape)
    per_token = [name for name in modules if taps[name].ndim > batch_and_tokens]

    def mask(batch: Any) -> dict[str, jax.Array]:
        filled: jax.Array = batch["attention_mask"].astype(bool)
        counted = counted_inputs(batch) if base.causal else filled
        return dict.fromkeys(per_token, counted)

    return mask


def shape_of(apply: Apply, params: Any, inputs: Any) -> Any:
    """Shapes of what a model makes of the first of some inputs, without running it."""
    first = jax.tree.map(lambda x: x[:1], inputs)
    # a new function each time: eval_shape does not trace one again that it knows
    return jax.eval_shape(lambda *x: apply(*x), params, first)


def _load_bert(folder: Path, raw: Mapping[str, Any]) -> Base:
    config, params = load_bert(folder)
    layers = () if config.has_pooler else TWO_LAYERS
    base = _of_texts(folder, raw, config, params, bert_apply(config), "classifier")
    return base._replace(head_layers=layers, token_types=config.has_pooler)


def _load_decoder(folder: Path, raw: Mapping[str, Any]) -> Base:
    config, params = load_decoder(folder)
    return _of_texts(folder, raw, config, params, decoder_apply(config), "score")


def _load_causal(folder: Path, raw: Mapping[str, Any]) -> Base:
    config, params = load_decoder(folder, head=True)
    apply = at_places(decoder_apply(config, output="hidden"))
    base = _of_texts(folder, raw, config, params, apply, None)
    return base._replace(vocabulary=vocabulary_head(config))


def _of_texts(
    folder: Path,
    raw: Mapping[str, Any],
    config: Any,
    params: Any,
    apply: Apply,
    head_module: str | None,
) -> Base:
    pad = raw.get("pad_token_id")
    return Base(
        folder=folder,
        inputs="texts",
        config=config,
        params=params,
        apply=apply,
        logits=head_logits,
        head_module=head_module,
        head_layers=(),
        logit_scale=1.0,
        pad_id=pad if isinstance(pad, int) and pad >= 0 else 0,
        token_types=False,
        files=_files(folder, "texts", "classification" if head_module else "causal"),
    )


def _load_vision(folder: Path, raw: Mapping[str, Any]) -> Base:
    config, params = load_vision(folder)
    tower = vision_apply(config)
    normalise = pixel_normaliser(folder, config.num_channels)

    def apply(params: Any, images: jax.Array) -> jax.Array:
        return tower(params, normalise(images))

    stored = hub.read_tensors(folder, keep="logit_scale".__eq__)
    scale = [math.exp(float(value)) for value in stored.values()]
    return Base(
        folder=folder,
        inputs="images",
        config=config,
        params=params,
        apply=apply,
        logits=cosines,
        head_module=None,
        head_layers=(),
        logit_scale=scale[0] if scale else None,
        pad_id=0,
        token_types=False,
        files=_files(folder, "images", "classification"),
    )


class _Kind(NamedTuple):
    inputs: Inputs
    load: Callable[[Path, Mapping[str, Any]], Base]


_KINDS = {
    **dict.fromkeys(PREFIXES, _Kind("texts", _load_bert)),
    **dict.fromkeys(ARCHITECTURES, _Kind("texts", _load_decoder)),
    "clip": _Kind("images", _load_vision),
    "clip_vision_model": _Kind("images", _load_vision),
}
_CAUSAL_KINDS = dict.fromkeys(ARCHITECTURES, _Kind("texts", _load_causal))


def _kind_of(folder: Path, raw: Mapping[str, Any], task_type: TaskType) -> _Kind:
    name = raw.get("model_type")
    kinds = _CAUSAL_KINDS if task_type == "causal" else _KINDS
    if name not in kinds:
        what = " as a causal language model" if task_type == "causal" else ""
        raise Refusal(
            f"{folder / hub.CONFIG}: model_type {name!r} is not read{what}, only "
            f"{', '.join(kinds)}"
        )
    return kinds[name]


def _files(folder: Path, inputs: Inputs, task_type: TaskType) -> tuple[str, ...]:
    weights = sorted(path.name for path in folder.glob("model*.safetensors*"))
    if inputs == "texts":
        named = task_type == "causal" and (folder / TOKENIZER_CONFIG).is_file()
        ends = (TOKENIZER_CONFIG,) if named else ()
        return (hub.CONFIG, *weights, "tokenizer.json", *ends)
    pixels = [PREPROCESSOR] if (folder / PREPROCESSOR).is_file() else []
    return (hub.CONFIG, *weights, *pixels)
