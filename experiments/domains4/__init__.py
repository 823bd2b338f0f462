"""Four domains, one small causal language model, and a LoRA adapter for each.

The base is SmolLM2-135M-Instruct, see ``base``; prompts with their completions lie in
the folder of `experiments.suite.shared_folder`. Nothing here is about right answers, of
which so small a model gives few: the measure is how likely it makes the completions of
unseen prompts, and of what an adapter gains over the base the share that a merge keeps.

``base`` writes the model, ``train`` makes the adapters, ``run`` compares merges.
"""
