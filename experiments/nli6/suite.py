"""The suites: MiniLM, six tasks, and each task's adapter and classifier."""

from collections.abc import Mapping
from pathlib import Path

from experiments.nli6.data import minilm_folder, split_anew
from experiments.suite import Suite, shared_folder
from experiments.text_pairs import load_pairs

HERE = Path(__file__).parent
TRAINED = HERE / "trained"
GIVEN = ("mnli", "qnli", "snli", "rte", "sick", "scitail")  # adapters made with PEFT
TASKS = ("mnli", "qnli", "snli", "mrpc", "sick", "scitail")
OWN = "mrpc"  # whose adapter is trained here, see `experiments.nli6.train`
LENGTH = 80  # tokens of a pair
SCITAIL_VALIDATION = 250  # of the 839 pairs of validation and test


def load_suite(shared: Path | None = None, trained: Path = TRAINED) -> Suite:
    """Reads the base, the adapters' classifiers and, when asked, the texts.

    The adapter of rte is only 7 points above the most frequent class, on 277 test
    pairs; mrpc takes its place. Validation and test of scitail are drawn anew, see
    `split_anew`.

    Args:
      shared: folder with ``adapters/minilm_nli6`` and ``data/text`` (default: that of
        `experiments.suite.shared_folder`).
      trained: folder with the adapter that is trained here.

    Returns:
      Suite whose features are BERT's pooled output [B, 384] and whose heads are the
      classifiers saved with the adapters, three classes for mnli, snli and sick and
      two for the others.

    Raises:
      ValueError: the base model's package or a folder is missing, or an adapter cannot
        be read.
    """
    if not (trained / OWN).is_dir():
        raise ValueError(
            f"{trained / OWN}: no such folder; run: python -m experiments.nli6.train"
        )
    shared = shared_folder() if shared is None else Path(shared)
    given = _given(shared)
    folders = {task: given.get(task, trained / OWN) for task in TASKS}
    suite = _load(shared, folders)
    tasks = (
        task._replace(load=split_anew(task.load, validation=SCITAIL_VALIDATION))
        if task.name == "scitail"
        else task
        for task in suite.tasks
    )
    return suite._replace(tasks=tuple(tasks))


def load_given(shared: Path | None = None) -> Suite:
    """The six adapters that PEFT trained, on the parts as published.

    See `load_suite`.
    """
    shared = shared_folder() if shared is None else Path(shared)
    return _load(shared, _given(shared))


def _given(shared: Path) -> dict[str, Path]:
    return {task: shared / "adapters" / "minilm_nli6" / task for task in GIVEN}


def _load(shared: Path, folders: Mapping[str, Path]) -> Suite:
    texts = shared / "data" / "text"
    return load_pairs("nli6", minilm_folder(), folders, texts, length=LENGTH)
