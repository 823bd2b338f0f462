"""Code of the documentation, so that tests run what readers see."""

import re
from pathlib import Path
from types import SimpleNamespace

DOCS = Path(__file__).resolve().parents[2] / "docs"


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page: what stands behind the fence, and the text."""
    return BLOCK.findall(page.read_text())


def code_of(page: str) -> SimpleNamespace:
    """Runs the Python blocks of a page of docs/ in order; gives what they define."""
    path = DOCS / page
    text = path.read_text()
    namespace: dict = {"__name__": path.stem}
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            above = text[: block.start(2)].count("\n")
            exec(compile("\n" * above + block[2], str(path), "exec"), namespace)
    return SimpleNamespace(**namespace)
