"""Fixtures of the tests of jaxmerge.io."""

import io_samples as samples
import pytest

from jaxmerge import io


@pytest.fixture
def adapters(tmp_path):
    """Two adapters of ranks 4 and 2 on two linear modules, [20, 15] and [12, 15]."""
    folders = []
    for seed, rank in enumerate((4, 2)):
        tensors = samples.linear("h.0.fc", m=20, n=15, r=rank, seed=10 * seed)
        tensors |= samples.linear("h.1.fc", m=12, n=15, r=rank, seed=10 * seed + 5)
        folders.append(samples.write(tmp_path / f"in{seed}", tensors, r=rank))
    return io.load_peft(folders)


@pytest.fixture
def updates(adapters):
    return samples.summed(adapters)


@pytest.fixture
def folder(tmp_path):
    """An adapter folder that a test damages."""
    return samples.write(tmp_path / "victim")


@pytest.fixture
def net():
    """The network of `io_peft_net`, which needs torch and PEFT."""
    from io_peft_net import Net, torch

    torch.manual_seed(0)
    return Net().eval()
