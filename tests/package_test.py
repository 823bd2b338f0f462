"""What is uploaded and installed: metadata, contents, a wheel far from the tree."""

import json
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from reference import ROOT

import jaxmerge as jm

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
URLS = PROJECT["project"]["urls"]
ADAPTERS = ROOT / "experiments/digits8/adapters"
VERSIONS = ("3.11", "3.12", "3.13")


def test_the_address_of_the_repository_is_one():
    repository = URLS["Repository"]
    for name, url in URLS.items():
        assert url.startswith(repository), name
    (link,) = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"][
        "substitutions"
    ]
    assert link["replacement"] == rf"]({repository}/blob/main/\1)"
    assert f"repository-code: {repository}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_links_of_the_readme_lead_somewhere_on_an_index():
    (link,) = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"][
        "substitutions"
    ]
    text = re.sub(
        link["pattern"], link["replacement"], (ROOT / "README.md").read_text()
    )
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert links
    assert all(found.startswith(("https://", "#")) for found in links)
    here = f"{URLS['Repository']}/blob/main/"
    for found in links:
        if found.startswith(here):
            path = found.removeprefix(here).partition("#")[0]
            assert (ROOT / path).exists(), found


def test_the_classifiers_are_the_versions_that_are_tried():
    named = "\n".join(PROJECT["project"]["classifiers"])
    assert tuple(re.findall(r"Python :: (3\.\d+)$", named, re.M)) == VERSIONS
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    assert all(f'"{version}"' in workflow for version in VERSIONS)
    assert PROJECT["project"]["requires-python"] == f">={VERSIONS[0]}"


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "jaxmerge/__init__.py"
    changes = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d[^\]]*)\]", changes, re.M)
    assert jm.__version__ in released or "## [Unreleased]" in changes


def interpreters():
    """Every Python that is tried and found: on the path, or in pyenv."""
    found = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in VERSIONS:
        places = [shutil.which(f"python{version}")]
        places += sorted(pyenv.glob(f"{version}.*/bin/python"))
        working = [str(place) for place in places if place and runs(place)]
        if working:
            found[version] = working[0]
    return found


def runs(python):
    """False of pyenv's place holders for versions that are not chosen."""
    return subprocess.run([python, "-V"], capture_output=True).returncode == 0


def run(*command, cwd):
    """Runs a program far from the tree; gives what it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"JAXMERGE_CACHE": "", "XLA_FLAGS": ""}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    place = tmp_path_factory.mktemp("built")
    python = next(iter(interpreters().values()))
    run(python, "-m", "venv", "builder", cwd=place)
    builder = place / "builder/bin/python"
    run(builder, "-m", "pip", "install", "--quiet", "build", cwd=place)
    run(builder, "-m", "build", "--outdir", place, ROOT, cwd=place)
    (sdist,), (wheel,) = place.glob("*.tar.gz"), place.glob("*.whl")
    return sdist, wheel


@pytest.mark.thorough
def test_the_sdist_has_tests_docs_and_all_that_they_read(built):
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "ls-files", cwd=ROOT).split()
    left_out = {name for name in tracked if name.startswith(".")}
    assert set(tracked) - left_out <= names
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.namelist()
        (path,) = (name for name in packed if name.endswith("/METADATA"))
        metadata = message_from_bytes(archive.read(path))
    assert {name.partition("/")[0] for name in packed} == {
        "jaxmerge",
        path.partition("/")[0],
    }
    assert "jaxmerge/py.typed" in packed
    assert metadata["Version"] == jm.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "The jaxmerge authors"
    assert f"]({URLS['Repository']}/blob/main/docs/guide.md)" in metadata.get_payload()


@pytest.mark.thorough
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_works_far_from_the_tree(built, version, tmp_path):
    found = interpreters()
    if version not in found:
        pytest.skip(f"no Python {version} found")
    _, wheel = built
    run(found[version], "-m", "venv", "venv", cwd=tmp_path)
    programs = tmp_path / "venv/bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    where = run(
        programs / "python",
        "-c",
        "import jaxmerge.api; print(jaxmerge.__file__, jaxmerge.__version__)",
        cwd=tmp_path,
    )
    assert str(tmp_path / "venv") in where
    assert where.split()[1] == jm.__version__
    assert "merge" in run(programs / "jaxmerge", "--help", cwd=tmp_path)
    folders = [ADAPTERS / "turned", ADAPTERS / "parity"]
    run(
        programs / "jaxmerge", "merge", *folders,
        "-p", "ties(density=0.2)|core|pico", "--out", "merged", cwd=tmp_path,
    )  # fmt: skip
    again = run(programs / "jaxmerge", "verify", "merged", "--json", cwd=tmp_path)
    assert json.loads(again)["identical"]


RUNS = "runs/cars runs/dtd runs/svhn"
MODEL = "--base base --data data"
TOUR = (  # what the extras are for, beside the commands that need none
    f"plan {RUNS}",
    f"inspect {RUNS} --html page.html --plots plots",
    f"merge {RUNS} -p ties(density=0.2)|core|scale(0.8) --heads keep --out merged",
    "verify merged",
    f"learn {RUNS} {MODEL} -p tara_b --steps 3 --out learned",
    f"tune {RUNS} {MODEL} -p ties(density={{0.2:0.8}})|core|scale({{0.5:2}})"
    " --search cma --evaluations 4 --plot tuned.png --out tuned",
    f"evaluate merged {RUNS} {MODEL} --plot scores.png",
    "convert runs/cars runs/dtd --out checkpoint",
    "convert checkpoint --task dtd --out back",
    "bake merged --base base --head merged/heads/cars.safetensors --new-heads"
    " --out baked",
    "extract baked --base base --energy 0.99 --others save --out extracted",
    "run merged --print",
    "run recipe.yaml --out again",
    "push merged owner/merged --dry-run",
    "plan small.lora.h5 --alpha 6",
)


@pytest.mark.thorough
def test_the_wheel_with_all_extras_does_what_they_are_for(built, tmp_path):
    _, wheel = built
    extras = PROJECT["project"]["optional-dependencies"].keys() - {"docs", "test"}
    run(next(iter(interpreters().values())), "-m", "venv", "venv", cwd=tmp_path)
    programs = tmp_path / "venv/bin"
    whole = f"{wheel}[{','.join(sorted(extras))}]"
    run(programs / "python", "-m", "pip", "install", "--quiet", whole, cwd=tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    shutil.copy(ROOT / "tests/data/keras/small.lora.h5", tmp_path)
    run(programs / "python", "-m", "experiments.example", cwd=tmp_path)
    recipe = f"adapters: [{RUNS.replace(' ', ', ')}]\npipeline: tsv_m\nheads: keep\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    for line in TOUR:
        run(programs / "jaxmerge", *line.split(" "), cwd=tmp_path)
    for plot in ("tuned.png", "scores.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
