"""Makes the arrays of this folder with the libraries themselves.

Needs qwix 0.1.8 and gemma 3.3.0 (``pip install qwix einops; pip install --no-deps
gemma``), which are no dependencies of jaxmerge. Each file holds a tree of a small model
by path (``tree/...``), inputs ``x`` and outputs ``y`` with the adapter, and ``without``
where it is zero.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx
from gemma import peft

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "support"))
from jax_models import Gemma, Linen, Nnx  # noqa: E402

RULES = [
    qwix.LoraRule(module_path="(layers|attn|experts).*", rank=3, alpha=6.0),
    qwix.LoraRule(module_path="conv", rank=2, alpha=8.0),
]


def filled(tree, key, scale=0.2):
    """The tree with random factors, and with zero ones."""

    def leaf(path, value):
        names = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        joined = "/".join(names)
        if "_lora_" not in joined and "/lora/" not in joined:
            return value, value
        at = jax.random.fold_in(key, hash_of(joined))
        return jax.random.normal(at, value.shape) * scale, jnp.zeros_like(value)

    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    both = [leaf(path, value) for path, value in paths]
    return (structure.unflatten(side) for side in zip(*both, strict=True))


def hash_of(text):
    return int.from_bytes(text.encode()[-3:]) % 10_007


def around(layer):
    kind = peft.LoRAEinsum if hasattr(layer, "einsum_str") else peft.LoRADense
    return kind(rank=3, wrapped=layer, dtype=jnp.float32)


def write(name, tree, **arrays):
    flat = {}
    for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [getattr(k, "key", getattr(k, "idx", None)) for k in path]
        flat["tree/" + "/".join(str(k) for k in keys if k is not None)] = value
    np.savez(
        HERE / f"{name}.npz", **{k: np.asarray(v) for k, v in (flat | arrays).items()}
    )


def main():
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    key = jax.random.key(7)

    model = qwix.apply_lora_to_model(Linen(), qwix.LoraProvider(RULES))
    params = model.init(jax.random.key(0), x)["params"]
    full, none = filled(params, key)
    outputs = [model.apply({"params": p}, x) for p in (full, none)]
    write("qwix_linen", full, x=x, y=outputs[0], without=outputs[1])

    rules = qwix.LoraProvider(module_path=".*", rank=3, alpha=6.0)
    model = qwix.apply_lora_to_model(Nnx(nnx.Rngs(0)), rules, x, rngs=nnx.Rngs(1))
    full, none = filled(nnx.state(model), key)
    outputs = []
    for state in (full, none):
        nnx.update(model, state)
        outputs.append(model(x))
    params = nnx.to_pure_dict(nnx.filter_state(full, nnx.Param))
    write("tunix_gemma", params, x=x, y=outputs[0], without=outputs[1])

    model = Gemma(around)
    params = model.init(jax.random.key(0), x)["params"]
    full, none = filled(params, key)
    outputs = [model.apply({"params": p}, x) for p in (full, none)]
    tree = {"layer_0": {"mlp": full}}
    write("gemma", tree, x=x, y=outputs[0], without=outputs[1])
    print(json.dumps({p.name: p.stat().st_size for p in HERE.glob("*.npz")}))


if __name__ == "__main__":
    main()
