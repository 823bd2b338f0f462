"""The tasks of vision8, each with a linear probe of the base for its head.

    python -m experiments.vision8.train --probes
    python -m experiments.run vision8_probes --out experiments/vision8/probes

As `experiments.configs.vision8` in everything else.
"""

from dataclasses import replace
from functools import partial

from experiments.configs import vision8
from experiments.settings import Settings
from experiments.vision8.suite import load_suite


def get_config() -> Settings:
    settings = vision8.get_config()
    load = partial(load_suite, probes=True)
    return replace(settings, load=load, training=None, retrain=None)
