"""Eight variations of the digits, eight LoRA adapters, and their merges.

The base is a small vision tower pretrained on scikit-learn's handwritten digits. Each
task is a variation of the same images (or of their labels) that the base fails on, with
an adapter of its own; ranks, alphas and adapted modules differ between them.

``train`` makes ``base/``, ``adapters/`` and ``metrics.json``, which are committed;
``demo`` merges the adapters in many ways, ``learning`` among them, and compares the
merged models on all tasks.
"""
