"""What differs between decoders: sizes, biases, norms of heads, windows."""

from dataclasses import dataclass

from jaxmerge.models.rope import Llama3Scaling

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and variants of a decoder, named as in ``config.json`` where it has a name.

    ``num_key_value_heads`` defaults to one for each attention head and ``head_dim`` to
    an equal share of the hidden size. ``attention_bias`` is that of q, k and v (Qwen2
    has it), ``output_bias`` that of o; ``head_norm`` puts a norm on every head of q and
    k (Qwen3). In layers of the type "sliding_attention" (`layer_types`; by default all,
    as in Mistral) a token sees itself and the ``sliding_window - 1`` before it; None
    is no window. ``pad_token_id`` says which token ends a text, as in transformers;
    where it is None, ``attention_mask`` does.
    """

    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: Llama3Scaling | None = None
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        heads = self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size is not a multiple of num_attention_heads: {self}"
            )
        object.__setattr__(self, "num_key_value_heads", self.key_value_heads)
        object.__setattr__(self, "head_dim", self.head_size)
        object.__setattr__(self, "layer_types", self._each_layer_type())
        if heads % self.key_value_heads:
            raise ValueError(
                f"num_attention_heads is not a multiple of num_key_value_heads: {self}"
            )
        if self.head_size % 2:
            raise ValueError(f"head_dim is odd, so it has no pairs to rotate: {self}")

    @property
    def key_value_heads(self) -> int:
        """``num_key_value_heads``, or its default."""
        given = self.num_key_value_heads
        return self.num_attention_heads if given is None else given

    @property
    def head_size(self) -> int:
        """``head_dim``, or its default."""
        given = self.head_dim
        return self.hidden_size // self.num_attention_heads if given is None else given

    @property
    def longest_input(self) -> int:
        """Largest number of tokens of an input."""
        return self.max_position_embeddings

    def window(self, layer: int) -> int | None:
        """How many tokens a token of a layer sees at most, itself among them."""
        types = self.layer_types or ()
        return self.sliding_window if types[layer] == SLIDING else None

    def _each_layer_type(self) -> tuple[str, ...]:
        count, window = self.num_hidden_layers, self.sliding_window
        if window is not None and window < 1:
            raise ValueError(f"sliding_window {window}: a token sees at least itself")
        if self.layer_types is None:
            return (FULL if window is None else SLIDING,) * count
        types = tuple(self.layer_types)
        if len(types) != count or not {FULL, SLIDING}.issuperset(types):
            raise ValueError(
                f"layer_types {types}: expected {FULL!r} or {SLIDING!r} for each of "
                f"{count} layers"
            )
        if window is None and SLIDING in types:
            raise ValueError(f"layer_types has {SLIDING!r} without a sliding_window")
        return types
