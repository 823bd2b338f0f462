"""What a file says never reaches a terminal as an instruction."""

import io
import os

import cli_samples as cli
import io_samples as samples
import pytest
from rich.table import Table

from jaxmerge.cli.terminal import PlainConsole

pytestmark = pytest.mark.usefixtures("as_a_user")
CODES = "a\x1b[2J\x9b1mb\rc\u202ed"
SPELLED = r"a\x1b[2J\x9b1mb\x0dc\u202ed"


@pytest.mark.parametrize("as_table", [False, True])
def test_a_console_spells_codes_out(as_table):
    out = io.StringIO()
    console = PlainConsole(file=out, width=200, force_terminal=True, highlight=False)
    table = Table(box=None)
    table.add_column("[bold]x")
    table.add_row(CODES)
    console.print(table if as_table else CODES, markup=False)
    written = out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert SPELLED in written
    assert not set("\x1b\x9b\r\u202e") & set(written)


@pytest.mark.parametrize(
    "arguments",
    [
        ("merge", CODES, CODES, "-p", "concat", "--out", "x"),
        ("plan", f"/nowhere/{CODES}"),
        ("merge", "a", "b", "-p", CODES, "--out", "x"),
        ("verify", CODES),
        ("inspect", CODES, f"--{CODES}"),
        (CODES,),
    ],
)
def test_messages_spell_codes_out(arguments):
    said = cli.refuse(*arguments)
    assert not set("\x1b\x9b\r\u202e") & set(said)


def test_names_that_are_no_text(tmp_path):
    """A name that is not in UTF-8 comes as halves of characters."""
    name = os.fsdecode(b"caf\xe9")
    samples.write(tmp_path / name)
    assert "udce9" in cli.refuse("plan", tmp_path / name)
    assert "udce9" in cli.refuse("verify", tmp_path / name)


PROGRAM = """
from jaxmerge.runtime import start_jax
start_jax()
import jax
print(jax.jit(lambda x: 2 * x + 1)(3.0))
"""


def test_a_damaged_cache_of_programs_is_replaced_quietly(tmp_path):
    cache = tmp_path / "cache"
    environment = {"JAXMERGE_CACHE": str(cache), "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    cli.python(PROGRAM, **environment)
    entries = list(cache.glob("*-cache"))
    sizes = {entry: entry.stat().st_size for entry in entries}
    assert entries
    for number, entry in enumerate(entries):
        whole = entry.read_bytes()
        damaged = (whole[: len(whole) // 2], b"", whole[:-9] + b"x" * 9)[number % 3]
        entry.write_bytes(damaged)
    again = cli.python(PROGRAM, **environment)
    assert (again.stdout, again.stderr) == ("7.0\n", "")
    replaced = {entry: entry.stat().st_size for entry in entries}
    assert replaced.keys() == sizes.keys()
    assert all(abs(replaced[entry] - sizes[entry]) < 100 for entry in entries)
