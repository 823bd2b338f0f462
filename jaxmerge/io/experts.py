"""LoRA on fused experts: one 3-D weight, whose factors look like those of a layer.

PEFT's ``target_parameters`` give such a module factors [r E, n] and [m, r E] for E
experts. ``B A`` of them is not its update, and neither names nor shapes say how the r E
directions belong to the experts. A config that lost ``target_parameters`` hides this.
"""

import re

_NUMBER = re.compile(r"\d")


def refusal_of_experts(
    module: str, rank: int, nominal: int | None, dimensions: int
) -> str | None:
    """Why a module cannot be read, if its name and its rank are those of fused experts.

    Single experts, which have a number behind ``experts``, are layers like others.

    Args:
      module: its name.
      rank: of its tensors.
      nominal: r of the config.
      dimensions: of its tensors.

    >>> refusal_of_experts("mlp.experts.3.up_proj", 4, 2, 2)
    >>> print(refusal_of_experts("mlp.experts", 6, 2, 2)[:49])
    it holds fused experts (here rank 6 = r 2 times 3
    """
    _, found, inside = f".{module}.".rpartition(".experts.")
    if not found or _NUMBER.search(inside):
        return None
    several = nominal is not None and rank > nominal and rank % nominal == 0
    if inside and not several and dimensions < 3:
        return None
    counted = f"here rank {rank} = r {nominal} times {rank // (nominal or 1)} experts, "
    return (
        f"it holds fused experts ({counted if several else ''}from target_parameters, "
        "which the config may have lost), and B A is not the update of their 3-D "
        "weight; unfuse the experts into linear layers first"
    )
