"""Eight variations of the digits, as `make demo` has them, with the common grids.

    python -m experiments.run digits8
    python -m experiments.analyses digits8
    python -m experiments.adapter_seeds digits8

Needs nothing but this repository. Candidates are measured on the 200 validation images
of every task, the chosen ones on its 700 test images. Learned merges see the validation
images without labels.
"""

from experiments.digits8.learning import STEPS
from experiments.digits8.suite import load_suite
from experiments.digits8.train import retrain
from experiments.settings import Settings


def get_config() -> Settings:
    return Settings(
        load=load_suite,
        validation=200,
        test=700,
        batch=200,
        longest_fit=STEPS,
        retrain=retrain,
    )
