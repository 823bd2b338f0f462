"""What the methods of PEFT and mergekit are called here, where they are offered."""

_LIKE = {  # name there -> what it is there, and the same thing here
    "cat": "PEFT's cat is concat",
    "linear": "the weighted sum of the updates is concat (PEFT's linear adds up A and "
    "B apart, which only approximates it), and the mean, mergekit's linear, is average",
    "svd": "PEFT's svd, the weighted sum at a lower rank, is concat|truncate(rank=..)",
    "ties_svd": "PEFT's ties_svd is elect|trim(density=..)|full|truncate(rank=..)",
    "dare_linear": "the sum of entries kept at random is total|dare(density=..)|full",
    "dare_linear_svd": "PEFT's dare_linear_svd is "
    "total|dare(density=..)|full|truncate(rank=..)",
    "dare_ties_svd": "PEFT's dare_ties_svd is "
    "elect|dare(density=..)|full|truncate(rank=..)",
    "magnitude_prune": "the sum of the largest entries is total|trim(density=..)|full",
    "magnitude_prune_svd": "PEFT's magnitude_prune_svd is "
    "total|trim(density=..)|full|truncate(rank=..)",
    "della_linear": "mergekit's della_linear is total|della(density=..)|full",
    "sum": "the sum of the updates is concat, and as a rule total",
    "model_soup": "a soup, the mean of the updates, is average",
}
_NOT_OFFERED = {
    *("slerp", "nuslerp", "multislerp", "karcher", "model_stock", "passthrough"),
    *("breadcrumbs", "breadcrumbs_ties", "sce", "nearswap", "arcee_fusion", "ram"),
    *("ramplus_tl", "fisher", "fisher_merging", "wudi", "doge", "lorahub"),
}


def counterpart(name: str) -> str:
    """A part of a message: what a name of another tool is here; "" if it is of none.

    >>> counterpart("dare-linear-svd")
    "; PEFT's dare_linear_svd is total|dare(density=..)|full|truncate(rank=..)"
    """
    plain = name.lower().replace("-", "_").replace(" ", "")
    if plain in _LIKE:
        return f"; {_LIKE[plain]}"
    if plain in _NOT_OFFERED:
        return "; it is not offered here, see jaxmerge methods for what is"
    return ""
