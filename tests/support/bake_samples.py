"""Bakes the adapter of a folder into its base, or is refused."""

import pytest
from cli_samples import everything

import jaxmerge as jm

UP, DOWN = (f"model.layers.0.mlp.{leaf}" for leaf in ("up", "down"))


def bake(place, **options):
    return jm.bake(place / "a", base=place / "base", out=place / "out", **options)


def refused(place, **options):
    """What a refusal says; nothing has been written."""
    with pytest.raises(jm.Refusal) as caught:
        bake(place, **options)
    assert not (place / "out").exists()
    assert not list(place.glob(".out*"))
    return str(caught.value)


def refused_again(place, **options):
    """What a refusal says, where an output is there already and stays."""
    before = everything(place / "out")
    with pytest.raises(jm.Refusal) as caught:
        bake(place, force=True, **options)
    assert everything(place / "out") == before
    return str(caught.value)
