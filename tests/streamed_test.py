"""Models that are read, merged and written module by module: the same bits."""

import weakref

import io_samples as samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_samples import everything, three
from methods import random_stack

import jaxmerge as jm
from jaxmerge import io
from jaxmerge.cli.values import byte_count
from jaxmerge.mapping import map_modules
from jaxmerge.mergers.passes import threshold_in_passes
from jaxmerge.mergers.thresholds import magnitude_threshold
from jaxmerge.streamed import Streamed, described, in_groups

PIPELINES = (
    "elect|dare(density=0.5)|core|pico|scale(0.3)",
    "elect|trim_whole_model(density=0.3)|knots|balanced",
    "concat|truncate(rank=2)",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return three(tmp_path_factory.mktemp("streamed"))


def streamed(values, groups=None):
    """Values of modules as a stream, and the modules that were made."""
    made = []

    def make(names):
        made.extend(names)
        return {name: values[name] for name in names}

    def describe():
        return jax.eval_shape(lambda: values)

    return Streamed(groups or [[name] for name in values], make, describe), made


def equal(one, other):
    assert list(one) == list(other)
    for name in one:
        jax.tree.map(np.testing.assert_array_equal, one[name], other[name])


class Thing:
    pass


def test_two_groups_are_never_held():
    alive = weakref.WeakSet()

    def make(names):
        assert not alive
        things = {name: Thing() for name in names}
        alive.update(things.values())
        return things

    stream = Streamed([["q", "k"], ["v"]], make, dict)
    for name in stream:
        assert stream[name] in alive
    assert [name in stream for name in "kw"] == [True, False]
    assert len(stream) == 3
    with pytest.raises(KeyError):
        stream["w"]


def test_neighbours_are_grouped_up_to_a_limit():
    sizes = {"a": 5, "b": 1, "c": 2, "d": 9, "e": 0}
    assert in_groups(sizes, 3) == [("a",), ("b", "c"), ("d",), ("e",)]
    assert in_groups(sizes, 100) == [tuple(sizes)]


@pytest.mark.parametrize("groups", [None, [["q", "k"], ["up"]]])
def test_a_stream_is_mapped_as_a_mapping_is(groups):
    stacks = {name: random_stack((3, 2), 9, 8, seed=i) for i, name in enumerate("qk")}
    stacks["up"] = random_stack((0, 2), 7, 8, seed=2)
    stream, made = streamed(stacks, groups)
    inputs = {"weights": {name: [i + 1.0, 0.5] for i, name in enumerate(stacks)}}
    merged = map_modules(jm.concat, stream, **inputs)
    assert made == []
    expected = map_modules(jm.concat, stacks, **inputs)
    assert jax.tree.map(jnp.shape, dict(expected)) == jax.tree.map(
        lambda x: x.shape, dict(described(merged))
    )
    assert made == []
    equal(merged, expected)
    assert sorted(made) == sorted(stacks)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_streamed_adapters_merge_to_the_same_bits(pipeline, folders):
    key = jax.random.key(1)
    inputs = {"key": key, "weights": [0.5, 2.0, 1.0], "memory": 10**6}
    whole, stream = (io.load_peft(folders, stream=x).stacks for x in (False, True))
    assert isinstance(stream, Streamed)
    equal(
        jm.parse(pipeline).run(stream, **inputs),
        jm.parse(pipeline).run(whole, **inputs),
    )


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_in_passes_are_exact(dtype):
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == np.float64):
        blocks = [
            jnp.asarray(np.round(rng.normal(size=(3, *shape)), 2), dtype)
            for shape in ((4, 5), (7,), (1, 1))
        ]
        blocks[1] = blocks[1].at[0, :3].set(jnp.array([jnp.nan, -jnp.inf, -0.0], dtype))
        for count in (0, 1, 3, 20, 28, np.array([2, 0, 27])):
            found = threshold_in_passes(lambda: blocks, lambda count=count: count)
            np.testing.assert_array_equal(found, magnitude_threshold(blocks, count))


def test_a_merge_of_folders_does_not_depend_on_the_bound(folders, tmp_path):
    files = []
    for bound in (None, 10**4, 10**9):
        out = tmp_path / str(bound)
        jm.merge(folders, PIPELINES[1], out=out, memory=bound)
        files.append(everything(out))
    assert files[0] == files[1] == files[2]


def test_what_cannot_be_bounded_is_refused(folders, tmp_path):
    with pytest.raises(jm.Refusal, match=r"'h\.0\..' alone needs .*memory="):
        jm.merge(folders, "concat", out=tmp_path / "out", memory=100)
    with pytest.raises(jm.Refusal, match=r"runs the model .* leave out memory"):
        jm.spec.memory.needs_all(jm.parse("iteris"), 10**9)


def test_files_that_change_before_they_are_merged_are_refused(tmp_path):
    folder = samples.write(tmp_path / "in")
    adapters = io.load_peft([folder], stream=True)
    merged = jm.each_module(jm.concat)(adapters.stacks)
    samples.write(folder, samples.linear(seed=5))
    with pytest.raises(io.AdapterError, match="changed while it was read"):
        io.save_peft(tmp_path / "out", merged, like=adapters)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"energy": 0.5}, {"energy": 0.5, "ragged": True}, {"rank": 1}]
)
def test_streamed_updates_are_truncated_alike(options, folders, tmp_path):
    for stream in (False, True):
        adapters = io.load_peft(folders, stream=stream)
        updates = jm.each_module(jm.concat)(adapters.stacks)
        io.save_peft(tmp_path / str(stream), updates, like=adapters, **options)
    assert everything(tmp_path / "True") == everything(tmp_path / "False")


def test_tasks_left_out_of_a_stream_are_absent(folders):
    left_out = ("cars@h.0.q", "cars@h.0.o", "dtd@h.0.o")
    whole, stream = (
        io.load_peft(folders, stream=x).without(left_out) for x in (False, True)
    )
    equal(stream.stacks, whole.stacks)
    assert {m: x.ranks for m, x in described(stream.stacks).items()} == {
        m: x.ranks for m, x in whole.stacks.items()
    }
    assert stream.layouts == whole.layouts


@pytest.mark.parametrize(
    ("text", "bytes_"), [("2GB", 2 * 10**9), ("1.5 gib", 3 * 2**29), ("7", 7)]
)
def test_bytes_are_read_with_their_units(text, bytes_):
    assert byte_count(text) == bytes_
