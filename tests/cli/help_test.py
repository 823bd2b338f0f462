"""The help of every command, which its signature and docstring give."""

import pytest
import typer
from cli_samples import document, refuse, three

from jaxmerge.cli import app
from jaxmerge.cli.signature import said_by

COMMANDS = {
    command.callback.__name__: command.callback for command in app.registered_commands
}
FLAGS = typer.main.get_command(app).commands

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name):
    assert FLAGS[name].help
    for option in FLAGS[name].params:
        assert option.help, option.name


@pytest.mark.parametrize("name", COMMANDS)
def test_a_docstring_speaks_of_no_other_options(name):
    written = getattr(COMMANDS[name], "__wrapped__", COMMANDS[name])
    taken = {option.name for option in FLAGS[name].params}
    assert said_by(written).options.keys() <= taken
    assert "Args:" not in FLAGS[name].help


def test_sections_of_a_docstring_are_panels():
    panels = {option.name: option.rich_help_panel for option in FLAGS["tune"].params}
    assert panels["score"] == panels["data"] == "Score"
    assert panels["points"] == "Search"
    assert panels["pipeline"] is None
    assert panels["hub"] == "Reading adapters"


def test_a_flag_that_is_repeated_gives_one_value_or_a_table(tmp_path):
    folders = three(tmp_path)
    sizes = [x for size in ("q=5", "o=7") for x in ("--vera-input", size)]
    assert document("plan", *folders, *sizes)["rank"]
    for flags, said in (
        (("--vera-input", "q=x"), "'--vera-input': expected a size or name=size, got"),
        (("--vera-input", "5", "--vera-input", "q=7"), "one size for all modules, or"),
        (("--lora-alpha", "8", "--lora-alpha", "q=4"), "one alpha for all modules, or"),
        (("--alpha", "q=x"), "'--lora-alpha': expected a number or 'rank', got 'x'"),
        (("--lora-alpha", "q=8"), "--lora-alpha is for checkpoints of JAX libraries"),
        (("--scan-axis", "2"), "'--scan-axis': expected 0, 1 or none, got '2'"),
    ):
        assert said in refuse("plan", *folders, *flags)
