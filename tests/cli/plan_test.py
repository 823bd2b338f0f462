"""``jaxmerge plan``, ``inspect``, ``convert`` and ``methods``."""

import json

import io_samples as samples
import numpy as np
import pytest
from cli_samples import (
    close,
    document,
    everything,
    jaxmerge,
    refuse,
    succeed,
    three,
    updates_of,
    weighted_sum,
)

from jaxmerge import __version__, io
from jaxmerge.cli.examples import EXAMPLES
from jaxmerge.cli.exits import as_flags
from jaxmerge.refusals import Message, Option
from jaxmerge.spec import PRESETS, STEPS, method_markdown, method_table, parse

pytestmark = pytest.mark.usefixtures("no_cache")


# --- plan --------------------------------------------------------------------------


def test_a_plan_shows_coverage_ranks_scales_and_costs(tmp_path):
    folders = three(tmp_path)
    said = succeed("plan", *folders)
    rows = [line.split() for line in said.splitlines()]
    kinds = ["linear", *"4/4", *"2/2"]
    assert ["cars", "org/base", "LORA", "2", "4", "2", "float32", "-"] in rows
    assert ["q", "6x5", "linear", "1/1", "r=4", "1/1", "r=2", "1/1", "r=3", "9"] in rows
    assert ["o", "5x7", "linear", "1/1", "r=4", "1/1", "r=2", "absent", "6"] in rows
    assert "output rank 9" in said
    assert "--max-lora-rank 16" in said
    assert "note: 1 of 2 modules are not adapted by every task" in said
    assert kinds  # the columns above are those of the table
    assert document("plan", *folders) == json.loads(
        json.dumps(io.plan_peft(folders).to_json())
    )


def test_conflicts_of_a_plan_are_shown_with_flags_and_fail(tmp_path):
    a = samples.write(tmp_path / "a")
    b = samples.write(tmp_path / "b", base_model_name_or_path="org/other")
    for options in ((), ("--json",), ("--quiet",)):
        result = jaxmerge("plan", a, b, *options)
        assert result.exit_code == 2
        said = result.stdout + result.stderr
        assert said.count(f"{b}: adapter of 'org/other'") == 1  # not twice
        if options == ():
            assert "conflict: " in result.stdout
            assert "pass --allow-different-bases" in result.stdout
            assert result.stderr == (
                "error: a merge would be refused, because of 1 conflict\n"
            )
        elif options == ("--json",):
            assert json.loads(result.stdout)["conflicts"][0]["kind"] == "base"
        else:
            assert result.stdout == ""
            assert "pass --allow-different-bases" in result.stderr
    succeed("plan", a, b, "--allow-different-bases")


def test_a_plan_reads_headers_unless_told_otherwise(tmp_path, monkeypatch):
    tensors = samples.linear("h.0.fc") | {
        key: 0 * value for key, value in samples.linear("h.1.fc").items()
    }
    folder = samples.write(tmp_path / "a", tensors)
    assert document("plan", folder)["adapters"][0]["zero_modules"] is None
    found = document("plan", folder, "--read-tensors")
    assert found["adapters"][0]["zero_modules"] == ["h.1.fc"]
    assert "no such folder" in refuse("plan", tmp_path / "nothing")


# --- inspect -----------------------------------------------------------------------


def test_inspect_measures_the_true_updates(tmp_path):
    folder = three(tmp_path)[0]
    found = document("inspect", folder)
    (task,) = found["tasks"]
    update = updates_of(folder)["h.0.q"]
    s = np.linalg.svd(update, compute_uv=False)
    entropy = -np.sum(s[:4] / s.sum() * np.log(s[:4] / s.sum()))
    module = task["modules"]["h.0.q"]
    assert (module["kind"], module["shape"]) == ("linear", [6, 5])
    assert (module["rank"], module["scale"]) == (4, 2.0)
    assert module["norm"] == pytest.approx(np.linalg.norm(update), rel=1e-5)
    assert module["top"] == pytest.approx(s[0], rel=1e-5)
    assert module["effective_rank"] == pytest.approx(np.exp(entropy), rel=1e-5)
    total = np.sqrt(sum(np.linalg.norm(u) ** 2 for u in updates_of(folder).values()))
    assert task["norm"] == pytest.approx(total, rel=1e-5)
    said = succeed("inspect", folder)
    assert "cars: 2 modules, norm" in said
    assert "q 6x5" in said
    assert "h.0.q 6x5" in succeed("inspect", folder, "--modules")


@pytest.mark.thorough
def test_inspect_reads_every_kind_of_checkpoint(tmp_path):
    folders = three(tmp_path / "in")
    adapters = io.load_peft(folders)
    io.save_orbax(tmp_path / "adapters", adapters)
    io.save_orbax(tmp_path / "stacks", adapters.stacks)
    merged = parse("concat").run(adapters.stacks)
    merged["dense"] = np.eye(3, dtype=np.float32)
    io.save_orbax(tmp_path / "updates", merged)
    found = document("inspect", tmp_path / "adapters")["tasks"]
    assert [task["name"] for task in found] == ["cars", "dtd", "svhn"]
    assert list(found[2]["modules"]) == ["h.0.q"]
    stacks = document("inspect", tmp_path / "stacks")["tasks"]
    assert [task["norm"] for task in stacks] == [task["norm"] for task in found]
    (updates,) = document("inspect", tmp_path / "updates")["tasks"]
    assert updates["modules"]["dense"]["effective_rank"] == pytest.approx(3)
    assert updates["modules"]["dense"]["rank"] is None
    expected = np.linalg.norm(weighted_sum(folders, [1, 1, 1])["h.0.q"])
    assert updates["modules"]["h.0.q"]["norm"] == pytest.approx(expected, rel=1e-5)
    assert "merged updates: 3 modules" in succeed("inspect", tmp_path / "updates")


# --- convert -----------------------------------------------------------------------


def test_peft_to_orbax_and_back(tmp_path):
    folders = three(tmp_path / "in")
    said = succeed("convert", *folders, "-o", tmp_path / "orbax")
    assert "3 adapters, 2 modules, as orbax" in said
    assert io.load_orbax(tmp_path / "orbax").names == ("cars", "dtd", "svhn")
    back = ("convert", tmp_path / "orbax", "-o")
    said = refuse(*back, tmp_path / "back")
    assert "holds cars, dtd, svhn; choose one with --task" in said
    assert "no adapter 'dogs'" in refuse(*back, tmp_path / "back", "--task", "dogs")
    for name, folder in zip(("cars", "dtd", "svhn"), folders, strict=True):
        found = document(*back, tmp_path / name, "--task", name)
        assert (found["format"], found["adapters"]) == ("peft", [name])
        close(updates_of(tmp_path / name), updates_of(folder), 1e-7)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"]
    assert document("verify", tmp_path / "svhn")["identical"]
    assert "exists already" in refuse(*back, tmp_path / "svhn", "--task", "svhn")
    succeed(*back, tmp_path / "svhn", "--task", "svhn", "--force")
    own = ("convert", tmp_path / "orbax", "-o", tmp_path / "orbax", "--force")
    assert "is or holds the input" in refuse(*own, "--task", "svhn")
    assert io.load_orbax(tmp_path / "orbax").names == ("cars", "dtd", "svhn")


def test_heads_and_biases_survive_a_round_trip(tmp_path):
    head = {"base_model.model.classifier.weight": samples.random(2, 5)}
    tensors = samples.linear(bias=True) | head
    folder = samples.write(tmp_path / "a", tensors, lora_bias=True)
    succeed("convert", folder, "-o", tmp_path / "orbax")
    succeed("convert", tmp_path / "orbax", "-o", tmp_path / "back")
    before, after = (
        io.load_peft([path], heads="keep") for path in (folder, tmp_path / "back")
    )
    (name,) = before.heads[0]
    np.testing.assert_array_equal(after.heads[0][name], before.heads[0][name])
    np.testing.assert_array_equal(after.biases["h.0.fc"], before.biases["h.0.fc"])


def test_what_cannot_be_converted_says_why(tmp_path):
    folders = three(tmp_path / "in")
    stacks = io.load_peft(folders).stacks
    io.save_orbax(tmp_path / "updates", parse("concat").run(stacks))
    before = everything(tmp_path)
    said = refuse("convert", tmp_path / "updates", "-o", tmp_path / "x")
    assert "merged updates without the layouts" in said
    said = refuse("convert", tmp_path / "updates", folders[0], "-o", tmp_path / "x")
    assert "one checkpoint at a time" in said
    assert "no such folder" in refuse("convert", tmp_path / "no", "-o", tmp_path / "x")
    assert everything(tmp_path) == before


# --- methods, demo and help --------------------------------------------------------


def test_methods_lists_every_name(tmp_path):
    said = succeed("methods")
    for row in method_table():
        assert f"  {row.name}: {row.method}" in said
    for preset in PRESETS.values():
        assert preset.pipeline in said
        assert preset.arxiv in said
        assert preset.source in said
    for name, step in STEPS.items():
        assert f"    {name}" in said
        assert step.says in said
    assert "svc(floor=1.0)" in said
    assert "lora_lego(iterations=10, align=True)" in said
    assert succeed("methods", "--markdown") == method_markdown()
    found = document("methods")
    assert found["steps"].keys() == STEPS.keys()
    assert {row["name"] for row in found["methods"]} >= PRESETS.keys()


def equal_ranks(folder):
    """Adapters that every method takes."""
    return [
        samples.write(folder / name, samples.linear(m=6, n=6, seed=seed))
        for seed, name in enumerate("abc")
    ]


def test_every_listed_command_runs_as_listed(tmp_path):
    """Refusals come before any work, so a dry run meets all of them."""
    folders = list(map(str, equal_ranks(tmp_path / "in")))
    place = {"ADAPTER...": folders, "OUT": [str(tmp_path / "out")]}
    said = succeed("methods")
    listed = {row["name"]: row["command"] for row in document("methods")["methods"]}
    assert len(listed) == 29
    inputs = {"regmean", "ssr", "iteris", "tara_a", "tara_b", "adamerging"}
    for name, command in listed.items():
        assert f"      {command}\n" in said
        program, *words = command.split()
        assert program == "jaxmerge"
        assert f"--pipeline {name} " in command
        if name in inputs:
            continue
        ask = [part for word in words for part in place.get(word, [word])]
        succeed(*ask, "--dry-run")
    assert listed["ssr"].endswith("--pipeline ssr --stats STATS --out OUT")
    with_model = "--base BASE --data DATA --out OUT"
    assert listed["iteris"].endswith(f"merge ADAPTER... --pipeline iteris {with_model}")
    assert listed["tara_a"] == (
        f"jaxmerge learn ADAPTER... --pipeline tara_a {with_model}"
    )
    ask = [
        part
        for word in listed["dare_ties"].split()[1:]
        for part in place.get(word, [word])
    ]
    assert "weight deltas" in succeed(*ask)


def test_a_plan_does_not_fail_on_heads(tmp_path):
    head = {"base_model.model.classifier.weight": samples.random(2, 5)}
    folder = samples.write(tmp_path / "a", samples.linear() | head)
    said = succeed("plan", folder)
    assert "note: some adapters bring heads" in said
    assert "--heads keep" in said
    assert "conflict" not in said
    assert "bring heads" not in succeed("plan", folder, "--heads", "keep")
    ask = ("merge", folder, "-p", "concat", "-o", tmp_path / "out", "--dry-run")
    assert "heads" in jaxmerge(*ask).stdout  # a merge needs a decision
    assert jaxmerge(*ask).exit_code == 2


def test_help_version_and_unknown_commands():
    assert succeed("--version") == f"jaxmerge {__version__}\n"
    for command in ("merge", "plan", "inspect", "convert", "verify", "methods"):
        assert command in succeed("--help")
        assert "--json" in succeed(command, "--help")
    assert "frobnicate" in refuse("frobnicate")
    assert succeed() == succeed("--help")
    for panel in ("Before a merge", "Merge", "After a merge", "Examples:"):
        assert panel in succeed("--help")
    for command in ("merge", "plan", "verify"):
        assert "Missing argument" in refuse(command)


@pytest.mark.parametrize("command", [name for name in EXAMPLES if name])
def test_the_help_of_a_command_is_whole_and_has_examples(command):
    said = succeed(command, "--help")
    assert "…" not in said  # nothing is cut at 80 columns
    words = " ".join(said.split())
    assert "Examples:" in said
    for example in EXAMPLES[command]:
        assert example in words
    assert ("Reading adapters" in said) is ("--assume-alpha" in said)
    assert "What is printed" in said


def test_an_error_is_one_json_document_too(tmp_path):
    for ask, code, says in (
        (("plan", tmp_path / "no"), 2, "no such folder"),
        (("merge", tmp_path / "no", "-p", "elec", "-o", tmp_path / "x"), 2, "elect"),
        (("merge", "--frobnicate"), 2, "frobnicate"),
    ):
        result = jaxmerge(*ask, "--json")
        assert result.exit_code == code
        found = json.loads(result.stdout)
        assert found["exit_code"] == code
        assert says in found["error"]
        assert result.stderr == f"error: {found['error']}\n"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["pass ", Option("assume_alpha", "rank", quoted=True), " for 1"],
         "pass --assume-alpha rank for 1"),
        ([Option("heads", "keep", quoted=True), ", 'first'"], "--heads keep, 'first'"),
        (["choose with ", Option("weight_file", "bin", quoted=True)],
         "choose with --weight-file bin"),
        ([Option("ignore_config_keys", "x.y")], "--ignore-config-key x.y"),
        ([Option("vera_inputs", "<size>")], "--vera-input <size>"),
        ([Option("vera_inputs", ("q=SIZE", "v=SIZE"), tabled=True)],
         "--vera-input q=SIZE --vera-input v=SIZE"),
        ([Option("ignore_config_keys", ("a", "$(b)"), quoted=True, listed=True)],
         "--ignore-config-key a --ignore-config-key '$(b)'"),
        ([Option("rank", "auto", quoted=True), ", ", Option("energy", "<share>")],
         "--rank auto, --energy <share>"),
        (["base='x' and bias=1 stay"], "base='x' and bias=1 stay"),
        ([Option("allow_zero", "True"), " too"], "--allow-zero too"),
    ],
)  # fmt: skip
def test_options_in_messages_become_flags(parts, expected):
    assert as_flags(Message(parts)) == expected
