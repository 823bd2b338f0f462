"""The notebooks run, and what is stored in them is what they print."""

import json
import re

import jax
import pytest
from documented import DOCS
from reference import ROOT

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
LONG = ("jax.vmap(", "jm.fit(")
ROUNDING = 2.0  # points of an accuracy


def cells(path):
    """Source and printed text of each cell with code."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            printed = ["".join(out.get("text", [])) for out in cell["outputs"]]
            yield "".join(cell["source"]), "".join(printed)


def assert_alike(found, stored):
    """The same words, and numbers that are equal up to rounding."""
    assert NUMBER.sub("#", found) == NUMBER.sub("#", stored)
    numbers = [[float(x) for x in NUMBER.findall(text)] for text in (found, stored)]
    assert numbers[0] == pytest.approx(numbers[1], abs=ROUNDING)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
@pytest.mark.usefixtures("as_a_user")
def test_what_is_stored_is_what_the_cells_print(path, tmp_path, monkeypatch, capsys):
    """Up to the first cell that takes long."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    names, ran = {"__name__": path.stem}, 0
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        for source, stored in cells(path):
            program = compile(source, path.name, "exec")
            if any(word in source for word in LONG):
                break
            exec(program, names)
            assert_alike(capsys.readouterr().out, stored)
            ran += 1
    assert ran >= 2


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_is_stored_is_what_a_kernel_prints(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the extra docs has nbformat")
    nbclient = pytest.importorskip("nbclient", reason="the extra docs has nbclient")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, 4)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, (_, stored) in zip(ran, cells(path), strict=True):
        printed = [out["text"] for out in cell.outputs if "text" in out]
        assert_alike("".join(printed), stored)
