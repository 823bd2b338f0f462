"""A package imports only what stands below it, and files have a size to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from reference import ROOT

PACKAGE = ROOT / "jaxmerge"
LAYERS = (  # from the bottom to the top, as in docs/design.md
    *("refusals", "runtime", "folders", "untrusted", "disk"),
    *(
        "linalg",
        "randomised",
        "streamed",
        "processes",
        "spread",
        "types",
        "doors",
        "stacks",
        "updates",
        "mapping",
        "magnitudes",
    ),
    *("models", "stats", "mergers", "io", "tasks", "learning", "diagnostics"),
    *("spec", "tuning", "reports", "jobs", "api", "cli", "__main__"),
)
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"
)


def layer_of(module: str) -> str | None:
    """The layer of a module of the package, None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and layer of every import from the package, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "jaxmerge"
        ):
            layer = layer_of(node.module)
            for alias in node.names:
                name = layer or (alias.name if alias.name in LAYERS else None)
                if name is not None:
                    yield node.lineno, name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("jaxmerge."):
                    yield node.lineno, layer_of(alias.name)


def test_every_file_has_a_layer():
    top = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    top |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert top == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_arrow_points_upwards(path):
    own = LAYERS.index(path.relative_to(PACKAGE).with_suffix("").parts[0])
    upwards = [
        f"line {line}: {layer}"
        for line, layer in imported(path)
        if LAYERS.index(layer) > own
    ]
    assert not upwards


def test_experiments_and_benchmarks_do_not_reach_into_the_command_line():
    for folder in ("experiments", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "cli" not in [layer for _, layer in imported(path)], path


def test_files_can_be_read_in_one_go():
    folders = ("jaxmerge", "experiments", "benchmarks", "tests", "website")
    files = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    assert set(FILES) < set(files)
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in files}
    assert {path: n for path, n in lengths.items() if n > 320} == {}


def test_few_files_share_a_name():
    names = [path.name for path in FILES if path.name != "__init__.py"]
    assert {name for name in names if names.count(name) > 1} <= {"plan.py"}
