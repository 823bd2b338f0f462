"""The suite: MiniLM, the six tasks, and each task's adapter and classifier."""

from pathlib import Path

from experiments.nli6.data import minilm_folder
from experiments.suite import Suite, shared_folder
from experiments.text_pairs import load_pairs

TASKS = ("mnli", "qnli", "snli", "rte", "sick", "scitail")
LENGTH = 80  # tokens of a pair


def load_suite(shared: Path | None = None) -> Suite:
    """Reads the base, the adapters' classifiers and, when asked, the texts.

    Args:
      shared: folder with ``adapters/minilm_nli6`` and ``data/text`` (default: that of
        `experiments.suite.shared_folder`).

    Returns:
      Suite whose features are BERT's pooled output [B, 384] and whose heads are the
      classifiers that PEFT saved with the adapters, three classes for mnli, snli and
      sick and two for the others.

    Raises:
      ValueError: the base model's package or the folder is missing, or an adapter
        cannot be read.
    """
    shared = shared_folder() if shared is None else Path(shared)
    adapters, texts = shared / "adapters" / "minilm_nli6", shared / "data" / "text"
    return load_pairs("nli6", minilm_folder(), adapters, texts, TASKS, length=LENGTH)
