"""Checkpoints of MaxText: what its attention computes, and back into its tree."""

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxmerge as jm

E, HEADS, SIZE, RANK, LAYERS, ALPHA = 6, 3, 4, 2, 2, 6.0
SCALE = ALPHA / RANK


def tree(seed=0, *, stacked=True, dtype=np.float32):
    """A tree of MaxText; layers are stacked on axis 1, or stand beside each other."""
    draw = np.random.default_rng(seed).standard_normal
    shapes = {
        ("self_attention", "query"): ((E,), (HEADS, SIZE)),
        ("self_attention", "key"): ((E,), (1, SIZE)),
        ("self_attention", "out"): ((HEADS, SIZE), (E,)),
        ("mlp", "wi_0"): ((E,), (5,)),
    }
    one = {}
    for (block, layer), (inputs, outputs) in shapes.items():
        a, b = draw((LAYERS, *inputs, RANK)), draw((LAYERS, RANK, *outputs))
        one.setdefault(block, {})[layer] = {
            "kernel_lora_a": np.moveaxis(a, 0, 1).astype(dtype),
            "kernel_lora_b": np.moveaxis(b, 0, 1).astype(dtype),
        }
    if stacked:
        return {"decoder": {"layers": one}}
    layers = {}
    for number in range(LAYERS):
        layers[f"layers_{number}"] = {
            block: {
                layer: {k: np.take(v, number, 1) for k, v in pair.items()}
                for layer, pair in parts.items()
            }
            for block, parts in one.items()
        }
    return {"params": {"decoder": layers}}


def kernel(layers, layer, number):
    """alpha / r * a @ b of one stacked layer, [E, heads, size]."""
    pair = layers["self_attention"][layer]
    a, b = (np.take(pair[f"kernel_lora_{x}"], number, 1) for x in "ab")
    return SCALE * np.einsum("er,rhs->ehs", a, b)


def rotated(x, pairs):
    """The rotary embedding of x [S, heads, size], by which features are pairs."""
    first, second = pairs
    angles = np.arange(len(x))[:, None] / 10 ** np.arange(SIZE // 2)
    cos, sin = (f(angles)[:, None] for f in (np.cos, np.sin))
    found = np.empty_like(x)
    found[..., first] = x[..., first] * cos - x[..., second] * sin
    found[..., second] = x[..., second] * cos + x[..., first] * sin
    return found


HALVES = np.arange(SIZE // 2), np.arange(SIZE // 2, SIZE)
BY_TURNS = np.arange(0, SIZE, 2), np.arange(1, SIZE, 2)


@pytest.mark.parametrize("stacked", [True, False])
def test_attention_computes_the_same_with_the_names_of_hugging_face(stacked):
    """Scores of queries and keys: halves over the root of the size, and by turns."""
    given = tree(stacked=stacked)
    adapters = jm.io.from_maxtext(given, alpha=ALPHA, scan_axis=1)
    draw = np.random.default_rng(1).standard_normal
    x, layers = draw((5, E)), tree()["decoder"]["layers"]
    queries, keys = draw((HEADS, SIZE, E)), draw((1, SIZE, E))
    order = np.stack(HALVES, 1).reshape(-1)  # of MaxText's kernels, out of halves
    for number in range(LAYERS):
        place = f"model.layers.{number}.self_attn"
        sums = []
        for leaf, base in (("q_proj", queries), ("k_proj", keys)):
            stack = adapters.stacks[f"{place}.{leaf}"]
            update = np.asarray(stack.b[0] @ stack.a[0]).reshape(base.shape)
            sums.append(np.einsum("se,hde->shd", x, base + update))
        q, k = (rotated(value, HALVES) for value in sums)
        expected = np.einsum("shd,tgd->hst", q, k) / np.sqrt(SIZE)
        bases = (queries[:, order] / np.sqrt(SIZE), keys[:, order])
        theirs = []
        for layer, base in zip(("query", "key"), bases, strict=True):
            whole = base.transpose(2, 0, 1) + kernel(layers, layer, number)
            theirs.append(rotated(np.einsum("se,ehd->shd", x, whole), BY_TURNS))
        found = np.einsum("shd,tgd->hst", *theirs)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_merges_goes_to_peft_and_back(tmp_path):
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path / str(seed))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folders[-1].resolve(), tree(seed))
    read = {"layout": "maxtext-llama", "lora_alpha": ALPHA, "scan_axis": 1}
    jm.merge(folders, "concat", out=tmp_path / "merged", **read)
    assert not jm.verify(tmp_path / "merged").serious
    merged = jm.io.load_peft([tmp_path / "merged"])
    assert "model.layers.1.mlp.gate_proj" in merged.stacks
    jm.convert([tmp_path / "merged"], to="maxtext-llama", out=tmp_path / "back")
    with ocp.PyTreeCheckpointer() as checkpointer:
        back = checkpointer.restore((tmp_path / "back").resolve())
    layers = [tree(seed)["decoder"]["layers"] for seed in (0, 1)]
    for number in range(LAYERS):
        for layer in ("query", "key"):
            pair = back["decoder"]["layers"]["self_attention"][layer]
            a, b = (np.take(pair[f"kernel_lora_{x}"], number, 1) for x in "ab")
            found = ALPHA / len(b) * np.einsum("er,rhs->ehs", a, b)
            expected = sum(kernel(each, layer, number) for each in layers)
            np.testing.assert_allclose(found, expected, atol=2e-5)


def test_qwen_is_as_in_hugging_face_and_half_precision_is_read():
    given = tree(dtype=jnp.bfloat16)
    options = {"alpha": ALPHA, "scan_axis": 1}
    qwen = jm.io.from_maxtext(given, model="qwen", **options).stacks
    own = jm.io.from_qwix(given, **options).stacks
    assert len(qwen) == len(own) == 4 * LAYERS
    name, theirs = "self_attn.q_proj", "self_attention.query"
    for number in range(LAYERS):
        found = qwen[f"model.layers.{number}.{name}"]
        expected = own[f"decoder.layers.{number}.{theirs}"]
        np.testing.assert_array_equal(found.b, expected.b)
    llama = jm.io.from_maxtext(given, **options)
    again = jm.io.to_maxtext(llama, like=given, **options)
    for x in "ab":
        path = "decoder", "layers", "self_attention", "query", f"kernel_lora_{x}"
        first, second = given, again
        for key in path:
            first, second = first[key], second[key]
        np.testing.assert_allclose(
            np.float32(second), np.float32(first), rtol=2.0**-7, atol=1e-6
        )


def test_what_is_not_certain_is_refused():
    flat = {"decoder": {"layers_0": {"self_attention": {"query": {
        "kernel_lora_a": np.ones((E, RANK)), "kernel_lora_b": np.ones((RANK, 12)),
    }}}}}  # fmt: skip
    with pytest.raises(jm.io.AdapterError, match="no axis of heads"):
        jm.io.from_maxtext(flat, alpha=1)
    pair = flat["decoder"]["layers_0"]["self_attention"]["query"]
    with pytest.raises(jm.io.AdapterError, match="one of qwix"):
        jm.io.from_maxtext({"token_embedder": pair}, alpha=1)
    with pytest.raises(jm.io.AdapterError, match="expected 'llama' or 'qwen'"):
        jm.io.from_maxtext(flat, alpha=1, model="gemma")
