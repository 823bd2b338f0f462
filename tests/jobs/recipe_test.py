"""Recipes: a merge as a small file, and the record of a folder as a recipe."""

import json
import re

import pytest
from cli_samples import document, refuse, succeed, three
from io_samples import edit

import jaxmerge as jm
from jaxmerge.jobs.recipe_file import read_recipe

pytestmark = pytest.mark.usefixtures("as_a_user")
WEIGHTS = "adapter_model.safetensors"
RECIPE = """
models:
  - model: base
  - model: in/cars
    parameters: {weight: 0.5, density: [0.4, 0.9]}
  - adapter: in/dtd
    name: textures
    parameters:
      weight: [{filter: .q, value: 2}, {filter: "*", value: 0.25}]
base_model: base
parameters: {density: 0.5}
pipeline: ties(density=each)|full|scale(0.8)
dtype: float32
out_dtype: bfloat16
rank: 4
dense: truncate
out: merged
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    three(tmp_path / "in")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_is_the_merge_that_it_says(place, monkeypatch):
    monkeypatch.chdir(place / "in")  # paths are taken from the folder of the file
    made = jm.run_recipe(place / "recipe.yaml")
    assert made.saved.path == str(place / "merged")
    assert (made.adapters, made.saved.dtype) == (("cars", "textures"), "bfloat16")
    same = jm.merge(
        [place / "in" / "cars", place / "in" / "dtd"],
        "ties(density=each)|full|scale(0.8)",
        weights=lambda module: [0.5, 2.0 if ".q" in module else 0.25],
        densities=[0.9, 0.5],  # one layer is the last one
        dtype="bfloat16",
        rank=4,
        dense="truncate",
        out=place / "same",
    )
    assert made.saved.files[WEIGHTS] == same.saved.files[WEIGHTS]
    for folder in ("merged", "same"):
        assert jm.verify(place / folder).to_json()["identical"]


def test_the_record_of_a_folder_is_a_recipe(place):
    folders = ["in/cars", "in/dtd", "in/svhn"]
    made = jm.merge(
        *(folders, "total|dare(density=each)|core"),
        weights=[1.0, [0.0, 0.5], -2.0],
        densities=[0.5, 0.9, 0.7],
        seed=7,
        energy=0.9,
        ragged=True,
        add_prefix="model.",
        out="out",
    )
    (place / "again.yaml").write_text(succeed("run", "out", "--print"))
    by_file = jm.run_recipe("again.yaml", out="by_file")
    by_folder = jm.run_recipe("out", out="by_folder")
    assert by_file.saved.files == by_folder.saved.files == made.saved.files
    assert document("run", "out", "--print") == jm.recipe_of("out")


def test_statistics_and_options_of_a_record_come_along(place):
    jm.merge(["in/cars", "in/dtd"], "concat", out="out", dtype="float16")
    edit(place / "out" / "jaxmerge.json", lambda r: r["recipe"].update(seed=1))
    recipe = jm.recipe_of("out")
    assert recipe["dtype"] == "float16"
    assert set(recipe) == {"adapters", "pipeline", "seed", "dtype", "heads"}


def test_an_adapter_that_is_another_than_the_recipe_pins_is_refused(place):
    jm.merge(["in/cars", "in/dtd"], "concat", out="out")
    recipe = jm.recipe_of("out")
    three(place / "other", dtype="float64")
    recipe["adapters"][1]["adapter"] = "other/dtd"
    with pytest.raises(jm.Refusal, match="not the file that the recipe names"):
        jm.run_recipe(recipe, out="again")
    recipe["adapters"][1]["sha256"] = {"../x": "0" * 64}
    with pytest.raises(jm.Refusal, match="paths below the folder"):
        jm.run_recipe(recipe, out="again")


def test_what_no_recipe_holds_is_refused(place):
    jm.merge(["in/cars"], "concat", weights=lambda _: [0.5], out="out")
    with pytest.raises(jm.Refusal, match="given by a function or a table"):
        jm.recipe_of("out")
    assert jm.verify("out").to_json()["identical"]
    with pytest.raises(jm.Refusal, match=r"has no jaxmerge\.json"):
        jm.run_recipe("in/cars", out="again")


def test_a_method_of_mergekit(place):
    recipe = {
        "models": [
            {"model": f"in/{task}", "parameters": {"weight": weight, "density": 0.5}}
            for task, weight in (("cars", 1.0), ("dtd", 0.5))
        ],
        "merge_method": "ties",
        "parameters": {"normalize": False, "lambda": 0.5},
        **{"dense": "truncate", "rank": 3, "dtype": "bfloat16", "out_dtype": "float16"},
    }
    made = jm.run_recipe(recipe, out="out")
    text = "elect(combine=sum_of_agreeing)|trim(density=0.5)|full|scale(0.5)"
    assert made.recipe.pipeline.text == text
    assert "computed in float32, not in bfloat16" in made.notes[-1]
    recipe["parameters"] = {}
    with pytest.raises(jm.Refusal, match="Give equal weights, or normalize: false"):
        jm.run_recipe(recipe, out="again")


A = {"adapters": ["a"]}
REFUSED = [
    ({**A, "pipline": "concat"}, "pipline: is not known; did you mean 'pipeline'?"),
    ({**A, "slices": []}, "slices: is of merges of whole models"),
    ({**A}, "one of pipeline: <steps> and merge_method: <name>"),
    ({**A, "pipeline": "x", "merge_method": "y"}, "one of pipeline: <steps> and"),
    ({"pipeline": "concat"}, "give the adapters once"),
    ({**A, "models": ["b"], "pipeline": "concat"}, "give the adapters once"),
    ({"adapters": [], "pipeline": "concat"}, "at least one adapter"),
    ({"adapters": [3], "pipeline": "concat"}, "adapters[0]: expected a table, got 3"),
    ({"adapters": [{"path": "a"}], "pipeline": "concat"}, "adapters[0].path: is not"),
    ({"adapters": [{"name": "a"}], "pipeline": "concat"}, "the folder of an adapter"),
    ({"adapters": [{"adapter": 3}], "pipeline": "concat"}, "expected text, got 3"),
    (
        {"adapters": [{"adapter": "a", "parameters": {"wieght": 1}}]},
        "parameters.wieght: is not known; did you mean 'weight'?",
    ),
    (
        {"adapters": [{"adapter": "a", "parameters": {"weight": 1}}, "b"]},
        "b: has no weight, others have",
    ),
    ({**A, "pipeline": "concat", "parameters": {"lambda": 1}}, "in its steps"),
    (
        {**A, "pipeline": "concat", "parameters": {"weight": "x"}},
        "expected a finite number",
    ),
    ({**A, "pipeline": "concat", "hub": True}, "hub: is not known"),
    ({**A, "pipeline": "concat", "stats": 3}, "stats: expected text"),
]


@pytest.mark.parametrize(("recipe", "said"), REFUSED)
def test_what_is_no_recipe_is_refused(recipe, said):
    with pytest.raises(jm.Refusal, match=re.escape(said)):
        read_recipe(recipe)


def test_a_file_is_named_in_what_is_refused(place):
    path = place / "bad.yaml"
    for text, said in (
        ("a: 1\na: 2", "line 2: 'a' occurs twice"),
        ("- a", "no recipe"),
    ):
        path.write_text(text)
        assert f"{path}: {said}" in refuse("run", path, "--out", "x")
    path.write_text(json.dumps({"adapters": ["in/cars"], "pipeline": "concat|scal(1)"}))
    assert "did you mean 'scale'" in refuse("run", path, "--out", "x")
    path.write_text("{adapters: [in/cars], pipeline: concat}")
    assert "names no folder to create; give --out" in refuse("run", path)
    assert "no such folder" in refuse("run", place / "x" / "y.yaml", "--print")
    assert not (place / "x").exists()


def test_a_recipe_repeats_what_was_left_out(place):
    folders = [place / "in" / name for name in ("cars", "dtd")]
    left = ["cars@h.0"]
    jm.merge(folders, "average", out="merged", heads="keep", leave_out=left)
    assert jm.recipe_of("merged")["leave_out"] == left
    jm.run_recipe("merged", out="again")
    first, second = (
        (place / name / WEIGHTS).read_bytes() for name in ("merged", "again")
    )
    assert first == second


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("ragged", "no"), ("energy", "0.8"), ("energy", True), ("chunk", "2")),
        *(("seed", "1"), ("rank", 0), ("dense", "yes"), ("leave_out", "a@h.0")),
    ],
)
def test_options_of_another_type_are_refused(option, value):
    recipe = {"adapters": ["a", "b"], "pipeline": "concat", option: value}
    with pytest.raises(jm.Refusal, match=f"field {option}"):
        jm.run_recipe(recipe, out="out")
