"""Models of transformers as references for the Flax ones."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxmerge.types import LowRank

torch = pytest.importorskip("torch")


def randomise(model, seed):
    """Large random weights everywhere, so that no layer is near the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def save_torch(model, folder, capfd, **options):
    model.save_pretrained(folder, **options)
    capfd.readouterr()  # transformers draws a progress bar


def as_torch(inputs):
    return {
        name: torch.tensor(value, dtype=torch.long) for name, value in inputs.items()
    }


def assert_close(ours, theirs, mask=None, tolerance=1e-5):
    """Equal relative to the largest entry, where the mask lets tokens be seen."""
    ours, theirs = np.asarray(ours, np.float32), theirs.detach().float().numpy()
    if mask is not None:
        ours, theirs = ours[mask == 1], theirs[mask == 1]
    scale = float(np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, atol=tolerance * scale, rtol=0)


def linear_layers(reference):
    """Names that PEFT gives to the linear layers."""
    return {
        name
        for name, layer in reference.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


def kernels(params):
    """Names of the layers that have a kernel."""
    leaves = flatten_dict(params, sep=".")
    return {path.removesuffix(".kernel") for path in leaves if path.endswith(".kernel")}


def add_updates(module, prefix):
    """Adds a random update of rank 2 to every linear layer; the updates, by name."""
    rng = np.random.default_rng(1)
    updates = {}
    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear):
                b = rng.normal(size=(layer.out_features, 2)).astype(np.float32)
                a = rng.normal(size=(2, layer.in_features)).astype(np.float32)
                updates[prefix + name] = LowRank(b=jnp.asarray(b), a=jnp.asarray(a))
                layer.weight += torch.tensor(b @ a)
    return updates
