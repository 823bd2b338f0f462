"""The suite: MiniLM, the six tasks, and each task's adapter and classifier."""

from functools import partial
from pathlib import Path

from experiments.nli6.data import load_split, minilm_folder
from experiments.suite import Suite, Task, shared_folder
from experiments.text_pairs import crop, lengths, visible
from jaxmerge.io import load_peft
from jaxmerge.models import bert_apply, head_from_hub, head_logits, load_bert

TASKS = ("mnli", "qnli", "snli", "rte", "sick", "scitail")


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
      ValueError: the base model's package or the folder is missing.
      AdapterError: an adapter cannot be read.
    """
    shared = shared_folder() if shared is None else Path(shared)
    config, params = load_bert(minilm_folder())
    folders = [shared / "adapters" / "minilm_nli6" / name for name in TASKS]
    saved = load_peft(folders, heads="keep").heads
    tasks = (
        Task(
            name=name,
            adapter=folder,
            head=head_from_hub(tensors, "classifier"),
            load=partial(load_split, shared / "data" / "text" / name),
        )
        for name, folder, tensors in zip(TASKS, folders, saved, strict=True)
    )
    return Suite(
        name="nli6",
        params=params,
        apply=bert_apply(config),
        logits=head_logits,
        tasks=tuple(tasks),
        lengths=lengths,
        crop=crop,
        mask=visible,
    )
