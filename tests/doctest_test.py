"""The examples in the docstrings and on the pages run, as a user would run them."""

import json
import os
import re
import subprocess
import sys

import pytest
from documented import DOCS
from reference import QUICK_XLA, ROOT

PAGES = sorted(
    path
    for path in (ROOT / "README.md", *DOCS.glob("*.md"))
    if re.search("^>>> ", path.read_text(), re.M)  # not those inside of a function
)

# One process for all, as compiled programs then serve many examples. A module may have
# the name of the function in it, as jaxmerge.mergers.ties has, so modules are asked for
# by their full names.
RUN = """
import doctest, importlib, json, os, pathlib, pkgutil, sys, tempfile, types
import jaxmerge, programs
programs.compile_cheaply()
programs.look_away()

root = pathlib.Path(jaxmerge.__file__).parent
files = {path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py")}
names = {".".join(path.parts).removesuffix(".__init__") for path in files}
found = pkgutil.walk_packages(jaxmerge.__path__, "jaxmerge.")
assert names == {"jaxmerge", *(module.name for module in found)}
counts = {}
for name in sorted(names - {"jaxmerge.__main__"}):
    module = importlib.import_module(name)
    assert isinstance(module, types.ModuleType) and module.__name__ == name, name
    counts[name] = doctest.testmod(module)
clone = pathlib.Path.cwd()
for page in sys.argv[2:]:
    with tempfile.TemporaryDirectory() as place:
        pathlib.Path(place, "experiments").symlink_to(clone / "experiments")
        os.chdir(place)
        counts[page] = doctest.testfile(page, module_relative=False)
        os.chdir(clone)
with open(sys.argv[1], "w") as file:
    json.dump({name: (n.attempted, n.failed) for name, n in counts.items()}, file)
"""


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """How many examples of each module and page ran and failed, and what was said."""
    cwd = tmp_path_factory.mktemp("examples")
    (cwd / "experiments").symlink_to(ROOT / "experiments")
    done = subprocess.run(
        [sys.executable, "-c", RUN, cwd / "counts.json", *PAGES],
        cwd=cwd,
        env={
            **os.environ,
            "XLA_FLAGS": " ".join(QUICK_XLA),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return json.loads((cwd / "counts.json").read_text()), done.stdout


def test_examples_of_modules(examples):
    counts, said = examples
    of_modules = {name: n for name, n in counts.items() if name.startswith("jaxmerge")}
    assert not [name for name, (_, failed) in of_modules.items() if failed], said
    assert sum(attempted for attempted, _ in of_modules.values()) >= 250


def test_the_pages_that_promise_examples_have_them():
    assert {"README.md", "guide.md", "methods.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_pages(page, examples):
    counts, said = examples
    attempted, failed = counts[str(page)]
    assert attempted > 0
    assert not failed, said
