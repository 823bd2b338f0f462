"""Checkpoints of JAX libraries, planned, merged and converted like any folder."""

import json
import shutil
import warnings

import io_samples as samples
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxmerge as jm

QWIX = {"lora_alpha": {"layers_.*": 6, "up|conv": 8}}
CHECKPOINTS = {  # folder below jax_checkpoints, how it is read, its truth, its library
    "flax_nnx/state": ({"lora_alpha": "rank"}, "truth_in_out.npz", "nnx"),
    "flax_nnx/pure": ({"lora_alpha": "rank"}, "truth_in_out.npz", "nnx"),
    "qwix_linen/lora_only": (QWIX, "truth_kernel_shape.npz", "qwix"),
    "qwix_linen/whole": (QWIX, "truth_kernel_shape.npz", "qwix"),
    "tunix_llama3": ({"lora_alpha": 8}, "truth_torch_out_in.npz", "tunix"),
}


def write(path, shapes=((4, 2), (2, 3)), seed=0, base=False, dtype=np.float32):
    """A checkpoint of qwix as orbax saves it."""
    draw = np.random.default_rng(seed).standard_normal
    layer = {
        f"kernel_lora_{x}": draw(s).astype(dtype)
        for x, s in zip("ab", shapes, strict=True)
    }
    tree = {"layers_0": {"fc": layer}}
    if base:
        tree["layers_0"]["fc"]["kernel"] = np.ones((4, 3), dtype)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), tree)
    return path


def restored(path):
    """The whole tree, by orbax alone."""
    with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as checkpointer:
        warnings.simplefilter("ignore", UserWarning)  # on the shardings of one device
        return checkpointer.restore(path.resolve())


def dense(folder, **read):
    adapters = jm.io.load_peft([folder], **read)
    return {m: np.asarray(s.b[0] @ s.a[0]) for m, s in adapters.stacks.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_the_libraries_hold_what_they_should(shared, name):
    read, truth, _ = CHECKPOINTS[name]
    folder = shared / "jax_checkpoints" / name
    found = dense(folder, **read)
    truths = folder if name == "tunix_llama3" else folder.parent
    with np.load(truths / truth) as expected:
        names = {key.removesuffix(".kernel"): key for key in expected}
        assert found.keys() == names.keys()
        for module, update in found.items():
            right = expected[names[module]]
            update = update if "torch" in truth else update.T.reshape(right.shape)
            scale = np.abs(right).max()
            np.testing.assert_allclose(update, right, atol=2e-6 * scale)


@pytest.mark.parametrize("name", ["flax_nnx/state", "qwix_linen/whole", "tunix_llama3"])
def test_a_merge_goes_back_into_the_tree_that_it_came_from(shared, tmp_path, name):
    read, _, library = CHECKPOINTS[name]
    folder = shared / "jax_checkpoints" / name
    jm.merge([folder], "concat", out=tmp_path / "merged", **read)
    jm.convert([tmp_path / "merged"], to=library, out=tmp_path / "back")
    item = "1/model_params" if library == "tunix" else "."
    first, again = restored(folder / item), restored(tmp_path / "back" / item)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), again, first)
    assert dense(tmp_path / "back").keys() == dense(folder, **read).keys()


def test_adapters_of_qwix_are_merged_verified_and_written_back(tmp_path):
    one = write(tmp_path / "one")
    two = write(tmp_path / "two", ((4, 3), (3, 3)), seed=1, base=True)
    planned = jm.plan([one, two], lora_alpha=6)
    assert planned.plan.modules["layers_0.fc"].scales == (3.0, 2.0)
    out = tmp_path / "merged"
    jm.merge([one, two], "concat", out=out, lora_alpha=6)
    assert jm.verify(out).serious == ()
    first, second = (dense(f, lora_alpha=6)["layers_0.fc"] for f in (one, two))
    for like, there in ((None, one), (two, two)):
        back = tmp_path / "back"
        jm.convert([out], to="qwix", like=like, out=back, force=True)
        update = dense(back)["layers_0.fc"]  # alpha stands in the record beside it
        np.testing.assert_allclose(update, first + second, atol=2e-6)
        tree = restored(back)["layers_0"]["fc"]
        assert ("kernel" in tree) == (there == two)
        scaled = tree["kernel_lora_a"] @ tree["kernel_lora_b"] * 6 / 5
        np.testing.assert_allclose(scaled, (first + second).T, atol=3e-6)
    (back / "jaxmerge.json").unlink()
    with pytest.raises(jm.io.AdapterError, match="holds no alpha"):
        jm.plan([back])


def test_a_peft_folder_becomes_a_tree_and_comes_back(tmp_path):
    folder = jm.convert(
        [write(tmp_path / "one")], out=tmp_path / "peft", lora_alpha=6
    ).path
    expected = dense(folder)["layers_0.fc"]
    for library in ("nnx", "qwix"):
        out = tmp_path / library
        found = jm.convert([folder], to=library, out=out, lora_alpha=4)
        assert (found.format, found.dtype) == (library, "float32")
        np.testing.assert_allclose(dense(out)["layers_0.fc"], expected, atol=1e-6)
    jm.convert([tmp_path / "qwix"], to="orbax", out=tmp_path / "orbax")
    jm.convert([tmp_path / "orbax"], out=tmp_path / "last")
    np.testing.assert_allclose(
        dense(tmp_path / "last")["layers_0.fc"], expected, atol=1e-6
    )


def test_factors_keep_the_dtype_of_the_tree(tmp_path):
    one = write(tmp_path / "one", dtype=np.float16)
    jm.merge([one], "concat", out=tmp_path / "merged", lora_alpha=4)
    found = jm.convert([tmp_path / "merged"], to="qwix", out=tmp_path / "back")
    assert found.dtype == "float16"
    jm.merge([one], "concat|scale(1e6)", out=tmp_path / "large", lora_alpha=4,
             dtype="float32")  # fmt: skip
    with pytest.raises(jm.io.AdapterError, match="does not fit into float16"):
        jm.convert([tmp_path / "large"], to="qwix", out=tmp_path / "big")


def test_the_step_of_a_manager_is_found_or_asked_for(tmp_path):
    folder = tmp_path / "run"
    for step in (2, 10):
        write(folder / str(step) / "params", seed=step)
        with pytest.raises(jm.Refusal, match="holds no alpha"):
            jm.plan([folder / str(step)])
        if step == 2:
            assert dense(folder, lora_alpha=2)
    with pytest.raises(jm.io.AdapterError, match=r"2 checkpoints.*such as .*run/10"):
        jm.plan([folder], lora_alpha=2)


def test_what_a_folder_cannot_become_is_refused(tmp_path):
    one = write(tmp_path / "one")
    peft = jm.convert([one], out=tmp_path / "peft", lora_alpha=6).path
    (tmp_path / "peft" / "jaxmerge.json").unlink()  # which names the tree and alpha
    for folders, options, said in (
        ([one], {"to": "nnx", "lora_alpha": 1}, "already; convert it with to='peft'"),
        ([peft], {"to": "qwix"}, "holds no alpha, .*lora_alpha=<number>"),
        ([peft], {"to": "tunix", "lora_alpha": 1}, "pass like=<tree>"),
        ([peft], {"to": "gemma"}, "pass like=<tree>"),
        ([peft, peft], {"to": "nnx"}, "give one adapter at a time"),
        ([peft], {"to": "mlx"}, "to='mlx': expected orbax"),
        ([one], {"like": one, "lora_alpha": 1}, "like is for nnx"),
        ([peft], {"to": "qwix", "like": peft, "lora_alpha": 1}, "no checkpoint of orb"),
    ):
        with pytest.raises(jm.Refusal, match=said):
            jm.convert(folders, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# orbax gives up and closes its loop while tensorstore may still have an answer for it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoints_are_refused(tmp_path):
    whole = write(tmp_path / "whole")
    for number, (name, content) in enumerate(
        [("_METADATA", b"{}"), ("_METADATA", b"no"), ("manifest.ocdbt", b"x" * 40)]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(content)
        with pytest.raises(jm.io.AdapterError, match=str(folder)):
            jm.io.load_peft([folder], lora_alpha=2)
    folder = tmp_path / "lies"
    shutil.copytree(whole, folder)
    text = json.loads((folder / "_METADATA").read_text())
    path = next(p for p in text["tree_metadata"] if "lora_a" in p)
    text["tree_metadata"][path]["value_metadata"]["write_shape"] = [400, 2]
    (folder / "_METADATA").write_text(json.dumps(text))
    try:
        found = dense(folder, lora_alpha=2)
    except jm.io.AdapterError:
        return
    np.testing.assert_array_equal(found["layers_0.fc"].shape, (3, 4))


def test_the_alpha_of_a_record_counts(tmp_path):
    """What this package wrote is not read with another alpha, and says so."""
    one = write(tmp_path / "one")
    peft = jm.convert([one], out=tmp_path / "peft", lora_alpha=6).path
    tree = jm.convert([peft], to="qwix", out=tmp_path / "tree", lora_alpha=8).path
    asked = jm.io.load_peft([tree], lora_alpha=16)
    (module,) = asked.stacks
    right = jm.io.load_peft([tree]).stacks[module]
    np.testing.assert_array_equal(asked.stacks[module].b, right.b)
    assert any("lora_alpha of its record, 8" in note for note in asked.notes)


def test_options_of_trees_are_refused_without_a_tree(tmp_path):
    one = write(tmp_path / "tree")
    peft = jm.convert([one], out=tmp_path / "peft", lora_alpha=6).path
    for options in ({"lora_alpha": 6}, {"scan_axis": 1}, {"layout": "qwix"}):
        with pytest.raises(jm.io.AdapterError, match=f"{next(iter(options))} is for"):
            jm.merge([peft, peft], "concat", out=tmp_path / "out", **options)
    assert jm.plan([peft, one], lora_alpha=6).plan.modules["layers_0.fc"].scales == (
        1.0,
        3.0,
    )


def test_saved_modules_have_no_place_in_a_tree(tmp_path):
    head = {"base_model.model.score.weight": samples.random(3, 6)}
    folder = samples.write(tmp_path / "in", samples.linear("h.0", m=8, n=6) | head)
    found = jm.convert([folder], to="qwix", out=tmp_path / "tree", lora_alpha=8)
    assert any("no place for saved modules" in note for note in found.notes)
    stored = jm.convert([folder], out=tmp_path / "stored", heads="keep").path
    with pytest.raises(jm.Refusal, match="checkpoint of this kind already"):
        jm.convert([stored], to="orbax", out=tmp_path / "again")
    for options in ({"task": "nope"}, {"component": "unet"}):
        with pytest.raises(jm.Refusal):
            jm.convert([folder], to="peft", out=tmp_path / "peft", **options)
    with pytest.raises(jm.Refusal, match="is a checkpoint, not a merge"):
        jm.verify(stored)
