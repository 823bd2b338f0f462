"""Configs that are not, or not only, PEFT's: whose keys they hold."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxmerge.io.errors import listing, show


class _Tool(NamedTuple):
    """One program that writes its own keys.

    Attributes:
      keys: keys that PEFT's configs do not have.
    """

    name: str
    keys: frozenset[str]


_TOOLS = (
    _Tool(
        "ms-swift",
        frozenset(
            {
                *("swift_type", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"),
                *("use_qa_lora", "use_merged_linear", "model_key_mapping"),
                *("tuner_backend", "train_type", "tuner_type", "sft_type"),
                *("target_regex", "freeze_llm", "freeze_vit", "freeze_aligner"),
            }
        ),
    ),
    _Tool(
        "axolotl",
        frozenset(
            {
                *("base_model_config", "adapter", "lora_model_dir", "lora_r"),
                *("lora_target_linear", "lora_target_modules"),
                *("lora_modules_to_save", "lora_fan_in_fan_out", "sequence_len"),
                *("sample_packing", "pad_to_sequence_len", "micro_batch_size"),
                *("dataset_prepared_path", "val_set_size", "num_epochs"),
                *("flash_attention", "wandb_project", "axolotl_config_path"),
                *("special_tokens", "datasets", "train_on_inputs"),
                *("group_by_length", "relora_steps", "peft_use_rslora"),
                *("peft_use_dora", "lora_mlp_kernel", "lora_qkv_kernel"),
                *("lora_o_kernel",),
            }
        ),
    ),
    _Tool(
        "LLaMA-Factory",
        frozenset(
            {
                *("finetuning_type", "lora_target", "lora_rank", "cutoff_len"),
                *("loraplus_lr_ratio", "additional_target", "stage", "template"),
                *("dataset_dir",),
            }
        ),
    ),
    _Tool(
        "unsloth",
        frozenset(
            {
                *("unsloth_version", "unsloth_fixed", "max_seq_length"),
                *("use_gradient_checkpointing", "random_state"),
            }
        ),
    ),
    _Tool(
        "transformers (a model's config)",
        frozenset(
            {
                *("_name_or_path", "architectures", "auto_map", "model_type"),
                *("transformers_version", "torch_dtype", "dtype", "vocab_size"),
                *("hidden_size", "intermediate_size", "num_layers"),
                *("num_hidden_layers", "num_attention_heads"),
                *("num_key_value_heads", "head_dim", "max_position_embeddings"),
                *("rope_theta", "rope_scaling", "rms_norm_eps"),
                *("layer_norm_epsilon", "layernorm_epsilon", "hidden_act"),
                *("hidden_dropout", "attention_bias", "attention_dropout"),
                *("initializer_range", "use_cache", "tie_word_embeddings"),
                *("bos_token_id", "eos_token_id", "pad_token_id", "sliding_window"),
                *("add_bias_linear", "add_qkv_bias", "ffn_hidden_size"),
                *("kv_channels", "multi_query_attention", "multi_query_group_num"),
                *("padded_vocab_size", "seq_length", "rmsnorm", "post_layer_norm"),
                *("original_rope", "quantization_config", "bias_dropout_fusion"),
                *("apply_query_key_layer_scaling", "n_embd", "n_head", "n_layer"),
                *("n_positions", "id2label", "label2id", "problem_type"),
            }
        ),
    ),
    _Tool("diffusers", frozenset(("_class_name", "_diffusers_version"))),
)
_USUAL = 2**20  # above it a number is no rank and no scale
_MODEL_KEYS = next(tool.keys for tool in _TOOLS if tool.name.startswith("transformers"))


def origins(keys: Collection[str]) -> str:
    """Where keys that PEFT does not have come from, as a part of a message.

    >>> origins(["_class_name", "swift_type"])
    "; 'swift_type' comes from ms-swift, '_class_name' comes from diffusers"
    """
    said, rest = [], list(keys)
    for tool in _TOOLS:
        found = [key for key in rest if key in tool.keys]
        if len(found) == len(keys):
            return f"; they come from {tool.name}"
        rest = [key for key in rest if key not in tool.keys]
        if found:
            verb = "come" if found[1:] else "comes"
            said.append(f"{listing(found)} {verb} from {tool.name}")
    return f"; {', '.join(said)}" if said else ""


def foreign_config(raw: Mapping[str, Any]) -> str:
    """What a config without ``peft_type`` is, and what to do; "" if it is unknown."""
    if "lora_parameters" in raw or "fine_tune_type" in raw or "lora_layers" in raw:
        return f"the config of an MLX adapter (mlx-lm); {mlx_advice(raw)}"
    if "model_class" in raw or isinstance(raw.get("config"), Mapping):
        return (
            "the config of an adapter of the library `adapters` (AdapterHub); train "
            "it with PEFT, or load it there and write its lora_A and lora_B with PEFT"
        )
    if "swift_type" in raw:
        return (
            f"an ms-swift config without peft_type (swift_type "
            f"{show(raw['swift_type'])}); train with its PEFT backend, or export the "
            "adapter with `swift export`"
        )
    if len(_MODEL_KEYS & raw.keys()) > 1:
        return (
            "a model's config.json, not the config of an adapter; copy "
            "adapter_config.json from where the weights came from"
        )
    return ""


def mlx_advice(raw: Mapping[str, Any]) -> str:
    """How an MLX adapter becomes PEFT's, with its own numbers where it has them."""
    if raw.get("fine_tune_type") in ("dora", "full"):
        return (
            f"its fine_tune_type {show(raw['fine_tune_type'])} is not a low-rank "
            "update; fuse it into the model with `mlx_lm.fuse`"
        )
    parameters = raw.get("lora_parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    rank, scale = parameters.get("rank"), parameters.get("scale")
    numbers = ""
    if (
        isinstance(rank, int)
        and isinstance(scale, int | float)
        and 0 < rank < _USUAL
        and abs(scale) < _USUAL
    ):
        numbers = f", here r = {rank} and lora_alpha = {scale * rank:g}"
    return (
        "write it as PEFT does: lora_A.weight is lora_a transposed, lora_B.weight is "
        "lora_b transposed, keys start with base_model.model., lora_alpha is "
        f"scale * rank{numbers}"
    )
