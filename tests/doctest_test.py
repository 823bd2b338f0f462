"""The examples in the docstrings and in the README run, as a user would run them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

RUN_ALL = """
import doctest, importlib, pkgutil, sys
import jaxmerge

names = [m.name for m in pkgutil.walk_packages(jaxmerge.__path__, "jaxmerge.")]
modules = [importlib.import_module(n) for n in names if not n.endswith("__main__")]
results = [doctest.testmod(module) for module in modules]
readme = doctest.testfile(sys.argv[1], module_relative=False)
examples = sum(result.attempted for result in results)
print(examples, "examples in docstrings,", readme.attempted, "in the README")
failed = any(result.failed for result in [*results, readme])
sys.exit(failed or examples < 50 or readme.attempted == 0)
"""


def test_examples(tmp_path):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, str(ROOT / "README.md")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
