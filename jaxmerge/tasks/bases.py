"""A Hugging Face folder as a pure function, by its ``model_type``."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from jaxmerge.folders import Folder
from jaxmerge.io.options import TaskType
from jaxmerge.models import (
    Blocks,
    bert_apply,
    bert_blocks,
    decoder_apply,
    decoder_blocks,
    head_logits,
    hub,
    load_bert,
    load_decoder,
    load_vision,
    vision_apply,
    vision_blocks,
    vocabulary_head,
)
from jaxmerge.models.adapt import Apply
from jaxmerge.models.bert import PREFIXES
from jaxmerge.models.decoder_hub import ARCHITECTURES
from jaxmerge.models.linear_head import TWO_LAYERS, cosines
from jaxmerge.refusals import Option, Refusal
from jaxmerge.spread import Rules, placed_by_rules
from jaxmerge.tasks.images import PREPROCESSOR, pixel_normaliser
from jaxmerge.tasks.next_tokens import (
    TOKENIZER_CONFIG,
    at_places,
    without_places,
)

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
      blocks: the same model in blocks, from the same inputs.
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
    blocks: Blocks
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


def load_base(
    folder: Folder,
    task_type: TaskType = "classification",
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: Rules = (),
    remat: bool = False,
) -> Base:
    """Reads the base model of adapters.

    Models of texts, BERT and decoders as Llama, have the heads of sequence
    classification; ``clip`` and ``clip_vision_model`` read images and have zero-shot
    heads. Decoders are also read as causal language models, with their own head.

    Args:
      folder: with ``config.json`` and safetensors weights.
      task_type: what its adapters are of.
      dtype: floating type of the parameters, such as ``jnp.bfloat16``, which halves
        their memory. By default decoders keep the stored one, others are float32.
      mesh: devices that hold the parameters together, as `jaxmerge.data_mesh`. They are
        read one by one, and each device gets its part: none holds all of them, and the
        host one at a time.
      rules: where each of them lies on the mesh, as in `jaxmerge.by_rules`; what fits
        no rule lies whole on every device.
      remat: ``apply`` keeps the inputs of each block and computes the rest of it again
        in the backward pass: one more forward pass, and much less memory.

    Raises:
      ValueError: another ``model_type``, or a folder that its loader refuses.
      Refusal: rules without a mesh, or that do not fit it or a parameter.

    A mesh of 8 devices with every large array in 8 parts::

        rules = [(r"(embedding|kernel)$", PartitionSpec("data", None))]
        mesh = jm.data_mesh()
        base = load_base(folder, "causal", dtype=jnp.bfloat16, mesh=mesh, rules=rules)
    """
    folder = Path(folder)
    raw = hub.read_config(folder)
    kind = _kind_of(folder, raw, task_type)
    how: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if mesh is not None:
        how["place"] = placed_by_rules(mesh, rules)
    elif rules:
        raise Refusal(
            "rules say how parameters lie on a mesh; give ",
            Option("mesh", "jaxmerge.data_mesh()"),
        )
    return kind.load(folder, raw, remat=remat, **how)


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


def _load_bert(
    folder: Path, raw: Mapping[str, Any], *, remat: bool, **how: Any
) -> Base:
    config, params = load_bert(folder, **how)
    layers = () if config.has_pooler else TWO_LAYERS
    model = bert_apply(config, remat=remat), bert_blocks(config)
    base = _of_texts(folder, raw, config, params, *model, "classifier")
    return base._replace(head_layers=layers, token_types=config.has_pooler)


def _load_decoder(
    folder: Path, raw: Mapping[str, Any], *, remat: bool, **how: Any
) -> Base:
    config, params = load_decoder(folder, **how)
    model = decoder_apply(config, remat=remat), decoder_blocks(config)
    return _of_texts(folder, raw, config, params, *model, "score")


def _load_causal(
    folder: Path, raw: Mapping[str, Any], *, remat: bool, **how: Any
) -> Base:
    config, params = load_decoder(folder, head=True, **how)
    apply = at_places(decoder_apply(config, output="hidden", remat=remat))
    blocks = _with_first(decoder_blocks(config), without_places)
    base = _of_texts(folder, raw, config, params, apply, blocks, None)
    return base._replace(vocabulary=vocabulary_head(config))


def _of_texts(
    folder: Path,
    raw: Mapping[str, Any],
    config: Any,
    params: Any,
    apply: Apply,
    blocks: Blocks,
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
        blocks=blocks,
    )


def _with_first(blocks: Blocks, change: Callable[[Apply], Apply]) -> Blocks:
    """The same blocks, which read other inputs."""
    return blocks._replace(
        first=blocks.first._replace(apply=change(blocks.first.apply))
    )


def _load_vision(
    folder: Path, raw: Mapping[str, Any], *, remat: bool, **how: Any
) -> Base:
    config, params = load_vision(folder, **how)
    normalise = pixel_normaliser(folder, config.num_channels)

    def of_pixels(tower: Apply) -> Apply:
        return lambda params, images: tower(params, normalise(images))

    stored = hub.read_tensors(folder, keep="logit_scale".__eq__)
    scale = [math.exp(float(value)) for value in stored.values()]
    return Base(
        folder=folder,
        inputs="images",
        config=config,
        params=params,
        apply=of_pixels(vision_apply(config, remat=remat)),
        logits=cosines,
        head_module=None,
        head_layers=(),
        logit_scale=scale[0] if scale else None,
        pad_id=0,
        token_types=False,
        files=_files(folder, "images", "classification"),
        blocks=_with_first(vision_blocks(config), of_pixels),
    )


class _Kind(NamedTuple):
    inputs: Inputs
    load: Callable[..., Base]


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
