"""Quantised weights, by the values that they stand for.

Each format is a class with ``rows``, which unpacks some rows of a weight;
`jaxmerge.io.packed.unpacked` makes of them a model as if nothing were packed.
"""
