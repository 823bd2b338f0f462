"""The commands that `kills` stops, each in a process of its own."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import base_samples
import learn_samples
from cli_samples import three

from jaxmerge.cli import app


class Command(NamedTuple):
    """A command that writes ``target``, as it was and as it will be."""

    name: str
    target: Path
    old: list[Any]
    new: list[Any]


def child(work: Callable[[], object]) -> int:
    """Starts some work in a process of its own; gives its number."""
    number = os.fork()
    if number:
        return number
    code = 99
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        with open(os.environ["KILLS_LOG"], "a") as log:
            traceback.print_exc(file=log)
    finally:
        os._exit(code)


def ended(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def run(arguments: list[Any]) -> None:
    code = ended(child(lambda: app(list(map(str, arguments)))))
    assert code == 0, (code, arguments)


def commands(place: Path) -> list[Command]:
    """Those that write, on tiny adapters, into ``place/outs``."""
    outs, inputs = place / "outs", three(place / "in")
    bert = [place / "bert" / "in" / task for task in learn_samples.TASKS]
    model = ["--base", place / "bert" / "base", "--data", place / "bert" / "data"]

    def command(name: str, file: str, old: list[Any], new: list[Any]) -> Command:
        target = outs / name / file
        flag = "--html" if file.endswith(".html") else "-o"
        end = (flag, target, "--force")
        return Command(name, target, [*old, *end], [*new, *end])

    merge, read = ["merge", *inputs, "-p"], ["--batch", 4]
    learn = ["learn", *bert, *model, *read, "--loss", "entropy", "--start", "method"]
    learn += ["-p", "tara_a", "--steps"]
    stored, base, tuned = (place / name for name in ("stored", "base", "tuned"))
    shapes = {"h.0.q.weight": (6, 5), "h.0.o.weight": (5, 7)}
    base_samples.model(base, shapes)
    run(["convert", inputs[0], "-o", stored])
    run(["bake", inputs[0], "--base", base, "-o", tuned])
    recipes = [place / "old.yaml", place / "new.yaml"]
    for path, pipeline in zip(recipes, ("concat", "tsv_m"), strict=True):
        adapters = ", ".join(map(str, inputs))
        path.write_text(f"adapters: [{adapters}]\npipeline: {pipeline}\n")
    tune = ["tune", *inputs, "--command", "echo 1 {merged} | cut -c 1", "--minimise"]
    extract = ["extract", tuned, "--base", base, "--rank"]
    return [
        command("merge", "out", [*merge, "concat"], [*merge, "elect|core|scale(0.5)"]),
        command(
            "convert to orbax",
            "out",
            ["convert", *inputs[:1]],
            ["convert", *inputs[1:2]],
        ),
        command(
            "convert to PEFT",
            "out",
            ["convert", inputs[1], "--to", "orbax"],
            ["convert", stored],
        ),
        command(
            "collect",
            "out",
            ["collect", *bert, *model, *read, "--limit", 4],
            ["collect", *bert, *model, *read],
        ),
        command("learn", "out", [*learn, 4], [*learn, 30]),
        command(
            "bake",
            "out",
            ["bake", inputs[0], "--base", base],
            ["bake", inputs[1], "--base", base],
        ),
        command("extract", "out", [*extract, 1], [*extract, 2]),
        command("run", "out", ["run", recipes[0]], ["run", recipes[1]]),
        command(
            "tune",
            "out",
            [*tune, "-p", "concat|scale({1, 2})", "--work", place / "tune_old"],
            [*tune, "-p", "tsv_m|scale({1, 2})", "--work", place / "tune_new"],
        ),
        command(
            "inspect --html",
            "page.html",
            ["inspect", *inputs[:2]],
            ["inspect", *inputs],
        ),
    ]
