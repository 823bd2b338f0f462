"""Several processes that `jax.distributed` connects: one writes, all agree."""

import itertools

import cli_samples
import fit_problem
import jax
import learn_samples
import numpy as np
import one_of_several
import pytest

import jaxmerge as jm
from jaxmerge import processes

pytestmark = pytest.mark.usefixtures("as_a_user")
QUICK = ("merge_modules", "save", "merge_folders", "fit_and_resume")


def run(count, folder, *tasks):
    """What every process found; but for what only some hold it is the same."""
    first, *others = one_of_several.start(count, folder, *tasks)
    of_each = [found["merge_modules"].pop("here") for found in (first, *others)]
    assert [found == first for found in others] == [True] * len(others)
    return first, of_each


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    cli_samples.three(folder / "adapters")
    return folder, *run(2, folder, *QUICK)


def test_a_mesh_over_processes_gives_the_results_of_one_device(two):
    check_modules(*two[1:])


def check_modules(found, of_each):
    with jax.enable_x64(False):
        key, stacks = jax.random.key(0), one_of_several.stacks()
        alone = jm.map_modules(one_of_several.MERGER, stacks, key=key)
    for name, merged in found["merge_modules"]["merged"].items():
        np.testing.assert_allclose(merged, jm.dense(alone[name]), atol=2e-5)
    names = list(itertools.chain(*of_each))
    assert sorted(names) == sorted(one_of_several.SIZES)  # each in one process
    assert "give map_modules gather=True" in found["merge_modules"]["refused"]


def test_checkpoints_of_orbax_are_written_by_one_and_read_by_all(two):
    folder, found, _ = two
    assert found["save"]["same"]
    assert "AdapterError" in found["save"]["again"]
    assert "exists already" in found["save"]["again"]
    assert (folder / "orbax").is_dir()


def test_an_error_of_one_process_is_an_error_of_all(two):
    expected = ["KeyError: 'of process 0'", "KeyError: 'of process 1'"]
    assert two[1]["save"]["failures"] == expected


def test_a_merge_of_folders_is_that_of_one_process(two, tmp_path):
    folder, found, _ = two
    recipe = jm.run_recipe(folder / "merged", out=tmp_path / "alone")
    for name, update in cli_samples.updates_of(folder / "merged").items():
        alone = cli_samples.updates_of(tmp_path / "alone")[name]
        np.testing.assert_allclose(update, alone, atol=1e-5)
    assert found["merge_folders"]["report"]["rank"] == recipe.saved.rank
    assert found["merge_folders"]["size"] > 0


def test_a_full_disk_of_the_one_that_writes_stops_all(two):
    folder, found, _ = two
    assert (
        "cannot be written (No space left on device)" in found["merge_folders"]["full"]
    )
    assert not (folder / "full").exists()
    left = {path.name for path in folder.iterdir()}
    assert left == {"adapters", "found", "fit", "merged", "orbax"}


def test_a_fit_over_processes_goes_on_to_the_same_losses(two, standard_promotion):
    check_fit(two[1])


def check_fit(found):
    batches = (
        {task: np.repeat(x, 2, axis=0)[:4] for task, x in batch.items()}
        for batch in itertools.islice(fit_problem.make_batches(), 8)
    )
    with jax.enable_x64(False):
        alone = fit_problem.run("adamerging", steps=8, batches=batches)
    fitted = found["fit_and_resume"]
    np.testing.assert_allclose(fitted["objective"], alone.history.objective, rtol=1e-5)
    assert fitted["devices"] == [found["save"]["together"]]


@pytest.mark.thorough
def test_four_processes_collect_and_learn_too(tmp_path):
    cli_samples.three(tmp_path / "adapters")
    learn_samples.bert(tmp_path / "base")
    learn_samples.bert_adapters(tmp_path / "bert")
    learn_samples.texts(tmp_path / "data")
    found, of_each = run(4, tmp_path, *QUICK, "collect", "learn")
    check_modules(found, of_each)
    check_fit(found)
    adapters = sorted((tmp_path / "bert").iterdir())
    model = {"base": tmp_path / "base", "data": tmp_path / "data"}
    with jax.enable_x64(False):
        jm.collect(adapters, **model, out=tmp_path / "alone", batch=4)
        learnt = jm.learn(
            *(adapters, "tara_a"), **model, out=tmp_path / "one", steps=12, batch=4
        )
    stats, alone = (jm.io.open_statistics(tmp_path / x) for x in ("stats", "alone"))
    for module, values in stats.load().items():
        for one, other in zip(values, alone.load()[module], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    for end, value in learnt.objective.items():
        assert abs(found["learn"]["objective"][end] - value) < 1e-5
    assert not (tmp_path / "learned.learning").exists()


def test_one_process_alone_needs_no_other():
    assert not processes.several()
    assert processes.writes()
    assert processes.of_first(lambda: 3) == 3
    with pytest.raises(KeyError), processes.together():
        raise KeyError
