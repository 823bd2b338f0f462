"""Progress of a job, shown by whoever asked for it."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called when some steps are done, with a new title where there is one."""

    def __call__(self, steps: int = 1, *, title: str | None = None) -> None: ...


class Progress(Protocol):
    """Shows that a number of steps is under way."""

    def __call__(self, title: str, total: int) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(title: str, total: int) -> Generator[Advance, None, None]:
    """Shows nothing."""

    def advance(steps: int = 1, *, title: str | None = None) -> None:
        pass

    yield advance
