"""Folders of statistics: what is written is read back, and nothing else is taken."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge import io


def measured(seed, *, tokens=7, sketch=None):
    """Statistics of two modules of one task."""
    rng = np.random.default_rng(seed)
    of = partial(jm.sketch_of, size=sketch) if sketch else jm.moments_of
    return {
        name: of(jnp.asarray(rng.normal(size=(tokens, n)), jnp.float32))
        for name, n in (("0.q", 4), ("0.o", 6))
    }


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


@pytest.mark.parametrize("sketch", [None, 3])
def test_tasks_are_stacked_in_the_order_that_is_asked_for(sketch, tmp_path):
    tasks = {name: measured(seed, sketch=sketch) for seed, name in enumerate("abc")}
    folder = io.save_statistics(tmp_path / "new" / "stats", tasks)
    assert folder.tasks == ("a", "b", "c")
    same(folder.load(), jm.stack_moments([tasks[name] for name in "abc"]))
    two = io.open_statistics(tmp_path / "new" / "stats").of(["c", "a"])
    expected = jm.stack_moments([tasks["c"], tasks["a"]])
    same(two.load(["0.o"]), {"0.o": expected["0.o"]})
    assert two.sha256.keys() == {"statistics.json", "c.safetensors", "a.safetensors"}
    assert two.widths() == {"0.o": 6, "0.q": 4}
    assert two.size("0.o") == 2 * (sketch or 6) * 6
    assert two.record["tasks"]["a"]["tokens"] == 7
    two.check_files()


def test_names_with_folders_stay_below_the_folder(tmp_path):
    out = tmp_path / "stats"
    io.save_statistics(out, {"cars/lora": measured(0)})
    assert (out / "cars" / "lora.safetensors").is_file()
    same(io.open_statistics(out).load(), jm.stack_moments([measured(0)]))
    for name in ("../x", "/x", ".x", "", "a//b", "a/../b", "a/", "\x1b[2J"):
        with pytest.raises(io.AdapterError, match="cannot be the name"):
            io.save_statistics(tmp_path / "other", {name: measured(0)})
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda: {"0.q": measured(0)["0.q"]}, "other modules or kinds"),
        (lambda: measured(0, sketch=3), "other modules or kinds"),
        (dict, "expected statistics of some modules"),
        (lambda: jm.stack_moments([measured(0)]), "of this task alone"),
        (lambda: {"0.q": jnp.ones(3), "0.o": jnp.ones(3)}, "is no statistics"),
    ],
)
def test_tasks_that_do_not_fit_each_other_leave_no_folder(second, message, tmp_path):
    with pytest.raises(io.AdapterError, match=message):
        io.save_statistics(tmp_path / "stats", {"a": measured(0), "b": second()})
    with pytest.raises(io.AdapterError, match="no task"):
        io.save_statistics(tmp_path / "stats", {})
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_kind_than_the_record_says(tmp_path):
    folder = io.save_statistics(
        tmp_path / "stats", {"a": measured(0), "b": measured(1)}
    )
    io.save_moments(tmp_path / "stats" / "b.safetensors", measured(0, sketch=2))
    with pytest.raises(io.AdapterError, match="is not the file that was collected"):
        folder.check_files()
    with pytest.raises(io.AdapterError, match="stats: "):
        folder.load()
    (tmp_path / "stats" / "a.safetensors").write_bytes(b"garbage")
    with pytest.raises(io.AdapterError, match="not a complete safetensors file"):
        folder.load()


def test_only_statistics_are_replaced(tmp_path):
    out = tmp_path / "stats"
    io.save_statistics(out, {"a": measured(0)})
    with pytest.raises(io.AdapterError, match="exists already"):
        io.save_statistics(out, {"b": measured(1)})
    io.save_statistics(out, {"b": measured(1)}, force=True)
    assert io.open_statistics(out).tasks == ("b",)
    io.save_statistics(out, {"runs/b": measured(1)}, force=True)
    io.save_statistics(out, {"b": measured(1)}, force=True)
    record = (out / "statistics.json").read_text()
    for name, content, foreign in (
        ("train.csv", "1,2", "'train.csv'"),
        ("c.safetensors", "", "'c.safetensors'"),
        ("statistics.json", '{"mean": 1}', "'b.safetensors', 'statistics.json'"),
        ("statistics.json", "", "'b.safetensors', 'statistics.json'"),
    ):
        (out / name).write_text(content)
        with pytest.raises(io.AdapterError, match=f"not statistics: {foreign}; force"):
            io.save_statistics(out, {"a": measured(0)}, force=True)
        assert (out / name).read_text() == content
        (out / name).unlink()
        (out / "statistics.json").write_text(record)
    with pytest.raises(io.AdapterError, match="is or holds the input"):
        io.save_statistics(out, {"a": measured(0)}, force=True, inputs=[out / "x"])
