"""What serving engines demand of an adapter."""

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_max_lora_rank(rank: int) -> int | None:
    """The value for vLLM's ``--max-lora-rank``, None if vLLM takes no such rank.

    >>> vllm_max_lora_rank(33), vllm_max_lora_rank(600)
    (64, None)
    """
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
