"""Runs the command line in this process, on tiny adapters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import io_samples as samples
import numpy as np
from typer.testing import CliRunner

from jaxmerge import io
from jaxmerge.cli import app


def jaxmerge(*arguments):
    """Runs a command; gives exit code, stdout and stderr."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def python(code, *arguments, check=True, **environment):
    """Runs code in a process of its own; None removes a variable."""
    values = {**os.environ, "JAXMERGE_CACHE": "", "XLA_FLAGS": "", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={name: value for name, value in values.items() if value is not None},
        capture_output=True,
        text=True,
        check=check,
        timeout=300,
    )


def succeed(*arguments):
    """Runs a command that must succeed; gives its stdout."""
    result = jaxmerge(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refuse(*arguments):
    """Runs a command that must refuse its input in one or two lines; gives them."""
    result = jaxmerge(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.stderr)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") <= 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


def document(*arguments):
    """Runs a command with --json; gives its one document."""
    return json.loads(succeed(*arguments, "--json"))


def three(folder: Path, **options) -> list[Path]:
    """Two shapes, mixed ranks, alpha over r of 2, and a task that lacks a module."""
    made = []
    for seed, (name, rank, modules) in enumerate(
        [("cars", 4, "qo"), ("dtd", 2, "qo"), ("svhn", 3, "q")]
    ):
        tensors = {}
        for leaf in modules:
            m, n = {"q": (6, 5), "o": (5, 7)}[leaf]
            module = f"h.0.{leaf}"
            tensors |= samples.linear(
                module, m=m, n=n, r=rank, seed=10 * seed, **options
            )
        config = {"r": rank, "lora_alpha": 2 * rank}
        if options.get("bias"):
            config["lora_bias"] = True
        made.append(samples.write(folder / name, tensors, **config))
    return made


def updates_of(folder: Path, task: int = 0) -> dict[str, np.ndarray]:
    """module -> dense update of an adapter folder."""
    adapters = io.load_peft([folder], heads="keep")
    return {m: samples.update(stack, task) for m, stack in adapters.stacks.items()}


def weighted_sum(folders, weights) -> dict[str, np.ndarray]:
    """The sum that task arithmetic should give, in float64."""
    total: dict[str, np.ndarray] = {}
    for folder, weight in zip(folders, weights, strict=True):
        for module, update in updates_of(folder).items():
            total[module] = total.get(module, 0) + weight * update
    return total


def close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for module in expected:
        scale = np.abs(expected[module]).max()
        np.testing.assert_allclose(
            found[module], expected[module], atol=tolerance * scale, rtol=0
        )


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
