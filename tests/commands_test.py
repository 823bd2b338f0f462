"""Every command of the README, of the pages of docs/ and of --help, as readers see it.

A block of a page with commands says by its first line of what kind it is: ``console``
runs, ``refused`` is refused with the words that follow, ``transcript`` shows adapters
that are not in the repository, ``setup`` installs or downloads, and ``elsewhere`` are
other programs.
"""

import re
import shlex
import tomllib
from importlib.util import find_spec

import pytest
from cli_samples import document, refuse, succeed
from documented import DOCS, blocks_of
from reference import ROOT

from experiments import example
from jaxmerge.cli import app
from jaxmerge.cli.examples import EXAMPLES

pytestmark = pytest.mark.usefixtures("as_a_user")
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ )?(?:jaxmerge|python3?|pip|make|hf|git) .*$", re.M)
EXAMPLE = "python -m experiments.example"
RUN = [
    *("README.md", "diagnostics.md", "guide.md", "image_models.md"),
    *("jax_checkpoints.md", "serving.md"),
]
KINDS = ("console", "refused", "transcript", "setup", "elsewhere")
ALONE = ["statistics.md", "tutorial.md"]  # have tests of their own


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Where the commands run."""
    monkeypatch.chdir(tmp_path)
    example.write(tmp_path)
    return tmp_path


def lines(page, kind):
    """The commands of the blocks of a kind."""
    found = [block for of, block in blocks_of(page) if of == kind]
    return [line for block in found for line in COMMAND.findall(block)]


def words(line, program="jaxmerge"):
    """The arguments of a command, as a shell splits it."""
    first, *others = shlex.split(line.removeprefix("$ "), comments=True)
    assert first == program, line
    return others


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_with_commands_says_of_what_kind_it_is(page):
    for kind, block in blocks_of(page):
        if kind != "python" and COMMAND.search(block):
            assert kind in KINDS, block
    if lines(page, "console"):
        assert page.name in [*RUN, *ALONE]


@pytest.mark.parametrize("name", RUN)
def test_commands_run_as_printed(name, clone):
    page = ROOT / name if name == "README.md" else DOCS / name
    ran = [line for line in lines(page, "console") if not line.endswith(EXAMPLE)]
    assert ran
    for line in ran:
        succeed(*words(line))
    if name == "guide.md":
        assert document("verify", "with_stats")["identical"]


def test_refusals_are_those_of_the_page(clone):
    refused = [
        block for page in PAGES for of, block in blocks_of(page) if of == "refused"
    ]
    assert len(refused) == 1
    for block in refused:
        line, error = block.strip().split("\n")
        assert refuse(*words(line)).strip() == error


def test_the_examples_of_help_run(clone):
    """Those that are commands of the guide too run there."""
    in_guide = {line.removeprefix("$ ") for line in lines(DOCS / "guide.md", "console")}
    others = {line: None for group in EXAMPLES.values() for line in group}.keys()
    others = [line for line in others if line not in in_guide]
    assert len(others) < 8
    for line in others:
        succeed(*words(line))


def test_transcripts_give_flags_that_exist():
    flags = known_flags()
    shown = [line for page in PAGES for line in lines(page, "transcript")]
    assert len(shown) >= 4
    for line in shown:
        command, *others = words(line)
        assert {word for word in others if word.startswith("--")} <= flags[command]


def known_flags():
    """command -> its flags."""
    import typer

    commands = typer.main.get_command(app).commands
    return {
        name: {flag for option in command.params for flag in option.opts}
        for name, command in commands.items()
    }


def test_setup_names_what_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for page in PAGES:
        text = page.read_text()
        for line in lines(page, "setup"):
            if line.startswith("make "):
                assert line.split()[1] in targets, line
        for named in re.findall(r"pip install\s+-e \"?\.\[([a-z,]+)\]", text):
            assert set(named.split(",")) <= extras.keys()
        for module in re.findall(
            r"python3? -m ((?:experiments|benchmarks)[\w.]*)", text
        ):
            assert find_spec(module), module
        assert not re.search(r"pip install\s+'?jaxmerge", text)  # not published yet


def test_the_example_writes_the_same_each_time_and_replaces_nothing(
    clone, tmp_path_factory, monkeypatch, capsys
):
    again = tmp_path_factory.mktemp("again")
    monkeypatch.setattr("sys.argv", ["example", "--out", str(again)])
    example.main()
    assert (
        "wrote runs, base, data, styles, language and recipe.yaml"
        in capsys.readouterr().out
    )
    for path in sorted(path for path in clone.rglob("*") if path.is_file()):
        assert (again / path.relative_to(clone)).read_bytes() == path.read_bytes()
    with pytest.raises(SystemExit):
        example.main()
    assert "exists already" in capsys.readouterr().err
