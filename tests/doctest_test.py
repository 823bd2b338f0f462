"""The examples in the docstrings and on the pages run, as a user would run them."""

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

# A module may have the name of the function in it, as jaxmerge.mergers.ties has, so
# modules are asked for by their full names.
OF_MODULES = """
import doctest, importlib, pathlib, pkgutil, sys, types
import jaxmerge

root = pathlib.Path(jaxmerge.__file__).parent
files = {path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py")}
names = {".".join(path.parts).removesuffix(".__init__") for path in files}
found = pkgutil.walk_packages(jaxmerge.__path__, "jaxmerge.")
assert names == {"jaxmerge", *(module.name for module in found)}
examples = failed = 0
for name in sorted(names - {"jaxmerge.__main__"}):
    module = importlib.import_module(name)
    assert isinstance(module, types.ModuleType) and module.__name__ == name, name
    result = doctest.testmod(module)
    examples, failed = examples + result.attempted, failed + result.failed
print(examples, "examples in", len(names), "modules")
sys.exit(bool(failed) or examples < 250)
"""
OF_PAGE = """
import doctest, sys

result = doctest.testfile(sys.argv[1], module_relative=False)
print(result.attempted, "examples")
sys.exit(bool(result.failed) or result.attempted == 0)
"""


def run(code, *arguments, cwd):
    """Runs code in a process of its own, where the root of a clone would be."""
    (cwd / "experiments").symlink_to(ROOT / "experiments")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": " ".join(QUICK_XLA), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_examples_of_modules(tmp_path):
    run(OF_MODULES, cwd=tmp_path)


def test_the_pages_that_promise_examples_have_them():
    assert {"README.md", "guide.md", "methods.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_pages(page, tmp_path):
    run(OF_PAGE, page, cwd=tmp_path)
