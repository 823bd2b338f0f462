"""The eight adapters and their tasks, as the common comparison takes them."""

from functools import partial

from experiments.digits8.data import load_splits
from experiments.digits8.model import ADAPTERS, BASE, head_logits, load_base
from experiments.digits8.tasks import TASKS
from experiments.suite import Split, Suite, Task
from jaxmerge import tasks


def load_suite() -> Suite:
    """Suite whose inputs are images [B, 8, 8, 1] and whose features are [B, 32]."""
    heads = load_base().heads
    base = tasks.load_base(BASE)._replace(logits=head_logits)
    found = (
        Task(name, ADAPTERS / name, heads[task.head], partial(load_split, name))
        for name, task in TASKS.items()
    )
    return Suite("digits8", base, tuple(found))


def load_split(name: str, part: str) -> Split:
    """The images of a task in one part of the digits, and their labels."""
    return Split(*TASKS[name].examples(load_splits()[part]))
