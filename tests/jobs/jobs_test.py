"""The main jobs from Python: the same as the commands, and their reports."""

import inspect
import json

import learn_samples
import pytest
from cli_samples import document, jaxmerge, refuse
from learn_samples import TASKS

import jaxmerge as jm
from jaxmerge import cli
from jaxmerge.jobs.planning import plan_merge

JOBS = (
    *("merge", "learn", "tune", "evaluate", "check", "collect", "inspect", "plan"),
    *("cluster", "compress", "restore", "convert", "bake", "extract"),
)
MORE = ("run_recipe", "push")  # commands that take none of the options of reading
OTHERS = {
    "distributed",  # says how a process was started
    "seconds",
    "path",
    "sha256",
    "files",
    "quiet",
    "as_json",
    "read",
    "progress",
}

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture
def place(tmp_path):
    learn_samples.bert(tmp_path / "base")
    learn_samples.bert_adapters(tmp_path / "in")
    learn_samples.texts(tmp_path / "data")
    return tmp_path


def told(report) -> dict:
    """What a report says, less what differs from run to run."""
    value = json.loads(json.dumps(report.to_json()))
    return {name: entry for name, entry in value.items() if name not in OTHERS}


def test_help_starts_with_them():
    listed = jm.__doc__.split("* `")[1:]
    assert tuple(line.partition("`")[0] for line in listed) == (*JOBS, "verify", *MORE)
    assert jm.__all__[: len(listed)] == [*JOBS, "verify", *MORE]


@pytest.mark.parametrize("name", [*JOBS, "verify", *MORE])
def test_a_function_takes_what_its_command_takes(name):
    """The command has no option of its own but what it prints, and whether it works."""
    said = name.removesuffix("_recipe")
    (command,) = (c for c in cli.app.registered_commands if c.callback.__name__ == said)
    flags = set(inspect.signature(command.callback).parameters) - OTHERS
    function = inspect.signature(getattr(jm, name)).parameters
    reading = {*jm.io.ReadOptions.__dataclass_fields__, "hub"}
    alone = {"merge": {"dry_run"}, "inspect": {"modules"}, "run_recipe": {"as_recipe"}}
    assert flags - reading - alone.get(name, set()) <= set(function)
    assert set(function) - flags - OTHERS <= {"recipe", "out", "names"}


def test_jobs_give_the_reports_of_their_commands(place):
    folders = [place / "in" / task for task in TASKS]
    merged = jm.merge(folders, "tsv|core|scale(0.5)", out=place / "a", heads="keep")
    said = document(
        *("merge", *folders, "-p", "tsv|core|scale(0.5)", "--heads", "keep"),
        *("-o", place / "b"),
    )
    assert told(merged) == {k: v for k, v in said.items() if k not in OTHERS}
    assert merged.saved.files == {**said["files"], **_records(merged.saved.files)}
    check_reports(
        (jm.plan(folders, heads="keep"), ["plan", *folders, "--heads", "keep"]),
        (
            plan_merge(folders, "concat", out=place / "p", heads="keep"),
            [
                *("merge", *folders, "-p", "concat", "--heads", "keep"),
                *("-o", place / "p", "--chunk", 2, "--dry-run"),
            ],
        ),
        (jm.inspect(folders), ["inspect", *folders]),
        (jm.verify(place / "a"), ["verify", place / "a"]),
        (
            jm.convert(folders, out=place / "c"),
            ["convert", *folders, "-o", place / "d"],
        ),
    )


@pytest.mark.thorough
def test_jobs_that_run_the_model_give_the_reports_of_their_commands(place):
    folders = [place / "in" / task for task in TASKS]
    where = {"base": place / "base", "data": place / "data"}
    flags = ["--base", place / "base", "--data", place / "data"]
    jm.merge(folders, "tsv|core|scale(0.5)", out=place / "a", heads="keep")
    options = {"steps": 2, "batch": 4, "seed": 1}
    given = [x for k, v in options.items() for x in (f"--{k}", v)]
    check_reports(
        (jm.check(folders, **where), ["check", *folders, *flags]),
        (jm.evaluate(place / "a", **where), ["evaluate", place / "a", *flags]),
        (
            jm.collect(folders, **where, out=place / "s"),
            ["collect", *folders, *flags, "-o", place / "t"],
        ),
        (
            jm.learn(folders, "adamerging", **where, out=place / "e", **options),
            ["learn", *folders, "-p", "adamerging", *flags, *given, "-o", place / "f"],
        ),
    )


def check_reports(*pairs):
    for report, command in pairs:
        said = {k: v for k, v in document(*command).items() if k not in OTHERS}
        assert told(report) == said, command[0]


def _records(files):
    """Digests of the files that tell of the folder and the time."""
    return {n: d for n, d in files.items() if n in ("jaxmerge.json", "README.md")}


def test_a_refusal_is_worded_for_each_face(place):
    folders = [place / "in" / task for task in TASKS]
    with pytest.raises(jm.Refusal, match="pass heads='keep'"):
        jm.merge(folders, "concat", out=place / "out")
    said = refuse("merge", *folders, "-p", "concat", "-o", place / "out")
    assert "pass --heads keep" in said
    with pytest.raises(jm.Refusal, match="needs a seed; give seed=0"):
        jm.merge(folders, "elect|dare(density=0.5)|core", out=place / "out")
    with pytest.raises(jm.Refusal, match=r"use `jaxmerge.learn`"):
        jm.merge(folders, "tara_b", out=place / "out")
    with pytest.raises(jm.Refusal, match="no coefficients to learn; begin with tara_a"):
        jm.learn(
            *(folders, "concat"),
            base=place / "base",
            data=place / "data",
            out=place / "out",
        )
    assert not (place / "out").exists()
    assert jaxmerge("merge", "--help").exit_code == 0


def test_progress_is_told_to_whoever_asks(place):
    seen = []

    def progress(title, total):
        seen.append(title)
        return jm_silent(title, total)

    from jaxmerge.jobs.progress import silent as jm_silent

    folders = [place / "in" / task for task in TASKS]
    jm.merge(folders, "concat", out=place / "out", heads="first", progress=progress)
    assert seen == ["reading", "merging modules", "writing and reading back"]
