"""Small base models and adapters on them, written with numpy alone."""

import json

import io_samples as samples
import ml_dtypes
import numpy as np
import safetensors.numpy

BF16 = np.dtype(ml_dtypes.bfloat16)
LAYERS = {
    "model.embed_tokens.weight": (11, 6),
    "model.layers.0.mlp.up.weight": (8, 6),
    "model.layers.0.mlp.up.bias": (8,),
    "model.layers.0.mlp.down.weight": (6, 8),
    "model.norm.weight": (6,),
}
CONFIG = {"model_type": "llama", "architectures": ["LlamaModel"]}


def model(folder, shapes=LAYERS, *, dtype=np.float32, shards=1, seed=0, **config):
    """Writes a model of random weights; gives its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: samples.random(*shape, seed=[seed, place]).astype(dtype)
        for place, (key, shape) in enumerate(shapes.items())
    }
    return save(folder, tensors, shards=shards, **config)


def save(folder, tensors, *, shards=1, **config):
    folder.mkdir(parents=True, exist_ok=True)
    values = {k: v for k, v in {**CONFIG, **config}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(values))
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return folder
    places = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        safetensors.numpy.save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensors_of(folder):
    """Every weight of a model, whichever file it is in."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(path)
    return found


def adapter(folder, modules=("up", "down"), *, scale=0.1, **config):
    """An adapter of the layers of `LAYERS`, with alpha over r of 2."""
    tensors = {}
    for module in modules:
        m, n = LAYERS[f"model.layers.0.mlp.{module}.weight"]
        tensors |= samples.linear(f"model.layers.0.mlp.{module}", m=m, n=n)
    return samples.write(
        folder, {key: scale * value for key, value in tensors.items()}, **config
    )
