"""Eight image tasks on a small vision tower that is pretrained here.

    python -m experiments.vision8.train
    python -m experiments.run vision8
    python -m experiments.osrm vision8
    python -m experiments.adapter_seeds vision8

Needs the folder of `experiments.suite.shared_folder` with ``data/images``. Candidates
are measured on 500 validation images of every task, the chosen ones on all test images
(360 to 3,000). Learned merges see validation images without labels.
"""

from experiments.settings import Settings, Training
from experiments.vision8.suite import load_suite
from experiments.vision8.train import AUGMENT, LORA, RECIPE, retrain


def get_config() -> Settings:
    return Settings(
        load=load_suite,
        validation=500,
        test=3000,
        longest_fit=300,
        scale_factor=0.5,
        training=Training(
            lora=LORA, recipe=RECIPE, augment=AUGMENT, validation=500, test=3000
        ),
        retrain=retrain,
    )
