"""The command as its own process: what it imports, prints and leaves behind."""

import json
import os
from pathlib import Path

import jax
import pytest
from cli_samples import close, python, three, updates_of, weighted_sum

from jaxmerge import runtime
from jaxmerge.runtime import cache_folder, limit_threads, return_freed_memory, start_jax

# Counts what JAX's persistent compilation cache did, and tells it on stderr.
COUNTING = """
import sys
import jax.monitoring
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
from jaxmerge.cli import main
try:
    main()
finally:
    for kind in ("cache_hits", "cache_misses"):
        print(kind, sum(e.endswith(kind) for e in events), file=sys.stderr)
"""
INTERRUPTED_WHILE_IMPORTING = """
import os, signal, sys, types
module = sys.argv.pop(1)
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
WITHOUT_TORCH = """
import sys
for name in ("torch", "peft", "transformers"):
    sys.modules[name] = None  # importing it raises ImportError
from jaxmerge.cli import main
main()
"""


def test_what_needs_no_jax_does_not_load_it(tmp_path):
    code = (
        "import sys\nfrom jaxmerge.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print(*{'jax', 'orbax', 'torch'} & sys.modules.keys())"
    )
    for command in (("--help",), ("methods",), ("plan", *three(tmp_path))):
        assert python(code, *command).stdout.splitlines()[-1] == ""


def test_a_merge_needs_neither_torch_nor_peft_nor_a_base(tmp_path):
    folders = three(tmp_path / "in")
    ask = ("merge", *folders, "-p", "concat", "-o", tmp_path / "out")
    done = python(WITHOUT_TORCH, *ask)
    assert done.stderr == ""  # no progress where stderr is not a terminal
    assert "3 adapters merged" in done.stdout
    close(updates_of(tmp_path / "out"), weighted_sum(folders, [1, 1, 1]))


def test_exit_codes_and_streams_of_the_real_command(tmp_path):
    folders = three(tmp_path / "in")
    code = "from jaxmerge.cli import main; main()"
    bad = python(code, "merge", *folders, "-p", "elec|core", "-o", "x", check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.count("\n") == 1
    assert "did you mean 'elect'?" in bad.stderr
    module = "import runpy; runpy.run_module('jaxmerge', run_name='__main__')"
    done = python(module, "plan", folders[0], "--json")
    assert json.loads(done.stdout)["rank"] == 4
    assert done.stderr == ""


@pytest.mark.thorough
def test_a_second_run_compiles_nothing(tmp_path):
    folders = three(tmp_path / "in")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAXMERGE_CACHE": None}

    def merge(name):
        pipeline = "elect|trim(density=0.5)|core|scale(0.3)"
        ask = ("merge", *folders, "-p", pipeline, "-o", tmp_path / name)
        done = python(COUNTING, *ask, **environment)
        return {k: int(v) for k, v in map(str.split, done.stderr.splitlines())}

    first, second = merge("first"), merge("second")
    assert first["cache_misses"] > 0
    assert second["cache_misses"] == 0
    assert second["cache_hits"] >= first["cache_misses"]
    assert (tmp_path / "cache" / "jaxmerge" / "programs").is_dir()
    name = "adapter_model.safetensors"
    assert (tmp_path / "first" / name).read_bytes() == (
        tmp_path / "second" / name
    ).read_bytes()


def test_threads_are_limited_unless_the_user_chose(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    limit_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    limit_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"


class NoLibrary:
    """A C library in which every call is recorded, or none is found."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, _):
        return self

    def __getattr__(self, name):
        if self.calls is None:
            raise AttributeError(name)
        return lambda *values: self.calls.append((name, *values))


@pytest.mark.parametrize("chosen", [None, *runtime.OWN_CHOICES])
def test_glibc_returns_memory_unless_the_user_chose(chosen, monkeypatch):
    for name in runtime.OWN_CHOICES:
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, "1")
    monkeypatch.setattr(os, "confstr_names", {"CS_GNU_LIBC_VERSION": 2})
    calls = []
    monkeypatch.setattr(runtime.ctypes, "CDLL", NoLibrary(calls))
    return_freed_memory()
    assert calls == ([] if chosen else [("mallopt", -3, 4 << 20)])


def test_another_c_library_is_left_alone(monkeypatch):
    for name in runtime.OWN_CHOICES:
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(runtime.ctypes, "CDLL", NoLibrary(calls))
    monkeypatch.setattr(os, "confstr_names", {})
    return_freed_memory()
    assert calls == []
    monkeypatch.setattr(os, "confstr_names", {"CS_GNU_LIBC_VERSION": 2})
    monkeypatch.setattr(runtime.ctypes, "CDLL", NoLibrary(None))
    return_freed_memory()


def test_where_programs_are_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JAXMERGE_CACHE", "")
    assert cache_folder() is None
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("JAXMERGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "jaxmerge" / "programs"
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "file" / "below"))
    start_jax()  # a cache that cannot be written is no reason to stop
    assert "is not writable" in capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize("module", ["typer", "jaxmerge.cli.merge", "jax._src.api"])
def test_ctrl_c_while_it_loads_ends_it_without_a_traceback(module, tmp_path):
    ask = (module, "merge", tmp_path / "a", "-p", "concat", "-o", tmp_path / "out")
    code = f"from jaxmerge.__main__ import main\n{INTERRUPTED_WHILE_IMPORTING}\nmain()"
    done = python(code, *ask, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert done.stderr in ("", "\nerror: interrupted\n", "error: interrupted\n")


def test_completion_knows_commands_and_flags():
    code = "from jaxmerge.cli import main; main()"
    for words, expected in (
        ("jaxmerge insp", "inspect"),
        ("jaxmerge plan --js", "--json"),
    ):
        environment = {
            "_JAXMERGE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        assert expected in python(code, **environment).stdout.split()
    assert "--install-completion" in python(code, "--help").stdout
