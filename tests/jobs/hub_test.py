"""Ids on the Hub where folders stand, and uploads, without a network."""

import shutil
import sys
from types import SimpleNamespace

import image_samples as image
import pytest
from cli_samples import document, refuse, three
from io_samples import edit

import jaxmerge as jm
from jaxmerge.io.hub_ids import hub_id

pytestmark = pytest.mark.usefixtures("as_a_user")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = ["adapter_config.json", "adapter_model.safetensors"]


class FakeHub:
    """What `huggingface_hub` offers, from folders; keeps what it was called with."""

    def __init__(self, place):
        self.place, self.calls, self.names = place, [], FILES
        self.existing = set()
        self.snapshot_download = self._snapshot

    def HfApi(self):
        return self

    def model_info(self, repo, *, revision=None):
        self.calls.append(("model_info", repo, revision))
        if repo == "owner/missing":
            raise RuntimeError("404 Client Error\nRepository Not Found")
        siblings = [SimpleNamespace(rfilename=name) for name in self.names]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def _snapshot(self, *, repo_id, revision, allow_patterns, **_):
        self.calls.append(("snapshot", repo_id, revision, tuple(allow_patterns)))
        made = self.place / "cache" / repo_id / "snapshots" / revision
        if not made.exists():  # as in the cache of the Hub, files are links
            for name in self.names:
                made.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
                blob = self.place / "in" / repo_id.split("/")[1] / name.split("/")[-1]
                made.joinpath(name).symlink_to(blob)
        return str(made)

    def repo_exists(self, repo):
        return repo in self.existing

    def create_repo(self, repo, *, private):
        self.calls.append(("create_repo", repo, private))

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **_):
        self.calls.append(("upload", repo_id, str(folder_path), tuple(allow_patterns)))
        return SimpleNamespace(oid=COMMIT, commit_url=f"https://hub/{repo_id}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    three(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    fake = FakeHub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


@pytest.mark.parametrize(
    "text",
    ["name", "/owner/name", "owner/name:../x", "owner/name:/x", "owner//name", "a/b@",
     "owner/name@../x", "owner/name:a//b", "-a/b", "owner/name b", "a/b/c"],
)  # fmt: skip
def test_what_is_no_id(text):
    assert hub_id(text) is None


@pytest.mark.parametrize(
    "text", ["a/b", "a/b@v1", "a/b:sub/c", "a/b@refs/pr/1:sub", "a/b@" + COMMIT]
)
def test_an_id_is_written_as_it_is_read(text):
    assert str(hub_id(text)) == text


def test_nothing_is_downloaded_unless_it_is_asked_for(hub):
    with pytest.raises(jm.Refusal, match=r"`hf download owner/cars` .* hub=True"):
        jm.plan(["owner/cars@v1"])
    assert "or give --hub" in refuse("plan", "owner/cars")
    assert hub.calls == []


def test_config_and_safetensors_of_one_commit_are_downloaded(hub, tmp_path):
    ids = ["owner/cars@v1", "owner/dtd"]
    merged = jm.merge(ids, "concat", out="out", hub=True)
    assert merged.adapters == ("cars", "dtd")
    assert hub.calls[0] == ("model_info", "owner/cars", "v1")
    name, repo, revision, patterns = hub.calls[1]
    assert (name, repo, revision) == ("snapshot", "owner/cars", COMMIT)
    assert all(p.endswith((".json", ".safetensors")) for p in patterns)
    assert not any("*" in p for p in patterns)
    record = jm.io.files.read_object(tmp_path / "out" / "jaxmerge.json")
    assert record["inputs"][0]["hub"] == f"owner/cars@{COMMIT}"
    assert "hub" not in record["read_options"]
    told = len(hub.calls)
    assert jm.verify("out").to_json()["identical"]
    assert len(hub.calls) == told  # from the cache, without a word to the Hub
    local = jm.merge(["in/cars", "in/dtd"], "concat", out="local")
    assert local.saved.files[FILES[1]] == merged.saved.files[FILES[1]]


def test_a_recipe_from_the_hub_is_pinned_and_cannot_download_by_itself(hub, tmp_path):
    jm.merge(["owner/cars", "owner/dtd"], "concat", out="out", hub=True)
    recipe = jm.recipe_of("out")
    assert recipe["adapters"][0]["adapter"] == f"owner/cars@{COMMIT}"
    (tmp_path / "r.yaml").write_text(jm.recipe_text(recipe))
    told = len(hub.calls)
    with pytest.raises(jm.Refusal):
        jm.run_recipe("r.yaml", out="again")
    with pytest.raises(jm.Refusal, match="hub: is not known"):
        jm.run_recipe({**recipe, "hub": True}, out="again")
    assert len(hub.calls) == told
    again = jm.run_recipe("r.yaml", out="again", hub=True)
    assert (
        again.saved.files[FILES[1]]
        == jm.merge(["in/cars", "in/dtd"], "concat", out="local").saved.files[FILES[1]]
    )
    assert {call[2] for call in hub.calls[told:]} == {COMMIT}
    (tmp_path / "in" / "cars" / FILES[1]).write_bytes(b"other")
    with pytest.raises(jm.Refusal, match="not the file that the recipe names"):
        jm.run_recipe("r.yaml", out="third", hub=True)


def test_verify_says_where_lost_inputs_came_from(hub, tmp_path):
    jm.merge(["owner/cars", "owner/dtd"], "concat", out="out", hub=True)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(jm.Refusal, match=f"downloaded 'owner/cars@{COMMIT}'"):
        jm.verify("out")
    edit(
        tmp_path / "out" / "jaxmerge.json", lambda r: r["read_options"].update(hub=True)
    )
    with pytest.raises(jm.Refusal, match=r"read_options\.hub: is not an option"):
        jm.verify("out")


def test_a_subfolder(hub):
    hub.names = [f"sub/{name}" for name in FILES]
    found = jm.plan(["owner/cars:sub"], hub=True).plan.adapters[0]
    assert (found.name, found.path.endswith(f"{COMMIT}/sub")) == ("sub", True)
    with pytest.raises(jm.Refusal, match="its subfolders do, give 'owner/cars:sub'"):
        jm.plan(["owner/cars"], hub=True)


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (
            ["adapter_config.json", "adapter_model.bin"],
            "owner/cars",
            "is not downloaded",
        ),
        (["model.safetensors"], "owner/cars", "holds no adapter_config.json"),
        (FILES, "owner/missing", r"\(RuntimeError: 404 Client Error\)"),
    ],
)
def test_what_the_hub_does_not_have(hub, names, given, said):
    hub.names = names
    with pytest.raises(jm.io.AdapterError, match=said):
        jm.plan([given], hub=True)
    assert not any(call[0] == "snapshot" for call in hub.calls)


def test_a_folder_goes_before_an_id(hub, tmp_path):
    shutil.copytree(tmp_path / "in" / "cars", tmp_path / "owner" / "cars")
    jm.plan(["owner/cars"], hub=True)
    assert hub.calls == []


def test_without_the_package(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(jm.Refusal, match=r"pip install \"jaxmerge\[hub\]\""):
        jm.plan(["owner/cars"], hub=True)


def test_push_uploads_the_adapter_and_nothing_else(hub, tmp_path):
    jm.merge(["in/cars", "in/dtd"], "concat", out="out")
    (tmp_path / "out" / "notes.txt").write_text("private")
    files = ("README.md", *FILES)
    dry = document("push", "out", "owner/merged", "--dry-run")
    assert tuple(dry["files"]) == files
    assert hub.calls == []
    done = jm.push("out", "owner/merged")
    assert (done.files, done.commit) == (files, COMMIT)
    assert hub.calls == [
        ("create_repo", "owner/merged", True),
        ("upload", "owner/merged", "out", files),
    ]
    assert "jaxmerge.json" in jm.push("out", "owner/other", record=True).files
    assert jm.push("out", "owner/open", public=True)
    assert ("create_repo", "owner/open", False) in hub.calls


def test_push_adds_to_what_exists_only_when_it_is_asked_to(hub):
    hub.existing.add("owner/merged")
    with pytest.raises(jm.Refusal, match="exists already"):
        jm.push("in/cars", "owner/merged")
    assert hub.calls == []
    assert jm.push("in/cars", "owner/merged", force=True).commit == COMMIT
    for wrong in ("merged", "owner/merged@v1", "../merged"):
        with pytest.raises(jm.Refusal, match="expected the name of a repository"):
            jm.push("in/cars", wrong)


def test_a_merge_of_image_models_is_pushed_and_read_again(hub, tmp_path):
    path = image.write_kohya(tmp_path / "ink.safetensors", image.pairs())
    jm.merge([path, path], "average", out="in/styles")
    hub.names = ["README.md", "kohya_lora.safetensors"]
    assert jm.push("in/styles", "owner/styles").files == tuple(hub.names)
    (found,) = jm.plan(["owner/styles"], hub=True).plan.adapters
    assert (found.kind, found.modules) == ("kohya", len(image.pairs()))


def test_what_is_no_adapter_is_not_pushed(hub):
    jm.merge(["in/cars", "in/dtd"], "elect|full", out="deltas", dense="full")
    with pytest.raises(jm.Refusal, match=r"weight deltas.*bake"):
        jm.push("deltas", "owner/deltas")
    with pytest.raises(jm.Refusal, match=r"no adapter_config.json .* image models"):
        jm.push("in", "owner/in")
    assert hub.calls == []
