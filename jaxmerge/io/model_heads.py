"""The config of a model that gets a head which it has not had."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_CLASSES = {  # PEFT's task type -> end of the class in transformers
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
_STEM = re.compile(r"(.+?)(LMHeadModel|Model|For[A-Z]\w*)?")
_OUTPUTS = re.compile(r"(classifier|score|qa_outputs)(\.(out_proj|dense|modules))?")


def config_with_head(
    config: Mapping[str, Any], task_type: str | None, new: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """A config that names the class with the new head, and its number of classes.

    Where nothing says of what task the head is, the class stays.

    Args:
      config: of the model without the head.
      task_type: PEFT's, from the adapter.
      new: the tensors of the head by name.

    >>> config = {"architectures": ["BertModel"]}
    >>> new = {"classifier.weight": np.zeros((3, 8))}
    >>> found = config_with_head(config, "SEQ_CLS", new)
    >>> print(found["architectures"], found["id2label"])
    ['BertForSequenceClassification'] {'0': 'LABEL_0', '1': 'LABEL_1', '2': 'LABEL_2'}
    """
    found = dict(config)
    suffix = _CLASSES.get(task_type or "")
    classes = config.get("architectures") or []
    if suffix and len(classes) == 1:
        stem = _STEM.fullmatch(classes[0])
        found["architectures"] = [f"{stem[1] if stem else classes[0]}{suffix}"]
    rows = [
        value.shape[0]
        for name, value in new.items()
        if value.ndim == 2 and _OUTPUTS.fullmatch(name.removesuffix(".weight"))
    ]
    if len(rows) == 1 and len(config.get("id2label") or "ab") != rows[0]:
        labels = {str(number): f"LABEL_{number}" for number in range(rows[0])}
        found["id2label"] = labels
        found["label2id"] = {label: int(number) for number, label in labels.items()}
    return found
