"""Layers that share or keep base weights: embeddings and output layers."""

from jaxmerge.io.errors import AdapterError, listing
from jaxmerge.io.factors import FactorSpec
from jaxmerge.io.keys import KeyTable

_OUTPUTS = {"lm_head", "embed_out", "output_layer", "decoder", "output"}
_TIED = {  # names of layers that models tie to each other
    *("embed_tokens", "wte", "embed_in", "shared", "word_embeddings"),
    *("tok_embeddings", *_OUTPUTS),
}


def frozen_copies(table: KeyTable) -> dict[str, str]:
    """Name -> key of base weights that were saved beside LoRA on the same layer.

    PEFT saves embeddings and output layers whole where LoRA adapts them. LoRA leaves
    the weight below it as it is, so the copy is that of the base.
    """
    copies = {}
    for name, key in table.heads.items():
        module, below, _ = name.rpartition(".base_layer.")
        if below and module in table.modules and _is_tied(module, table):
            copies[name] = key
    return copies


def _is_tied(module: str, table: KeyTable) -> bool:
    """Whether a module may be an embedding or an output layer."""
    embedding = "embedding_A" in table.modules.get(module, {})
    return embedding or module.rpartition(".")[2] in _TIED


def refuse_tied(table: KeyTable, path: object) -> None:
    """AdapterError if tied layers are adapted, whose factors PEFT then keeps equal."""
    saved = {name.rpartition(".")[0] for name in table.heads}
    tied = [m for m in sorted(saved | table.modules.keys()) if _is_tied(m, table)]
    if tied:
        raise AdapterError(
            f"{path}: ensure_weight_tying is set and {listing(tied)} may be tied: its "
            "factors act on two tied layers at once; save it with "
            "ensure_weight_tying=False"
        )


def base_difference(module: str, one: FactorSpec, other: FactorSpec) -> str:
    """What two shapes of one module say about the bases, and what to do."""
    (m, n), (p, q) = one.shape, other.shape
    sizes = None
    if one.layout.kind == other.layout.kind == "embedding" and m == p:
        sizes = n, q
    elif module.rpartition(".")[2] in _OUTPUTS and n == q:
        sizes = m, p
    if sizes is None:
        return "they belong to different base models and cannot be merged"
    return (
        f"the vocabularies of their bases have {sizes[0]} and {sizes[1]} tokens; train "
        "both on one base, with the same tokens added in the same order "
        "(resize_token_embeddings)"
    )
