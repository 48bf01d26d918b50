import pytest
import torch

from torch_geometric_erwin.nn.rollout.noise import random_walk


@pytest.mark.parametrize("length", [1, 2, 5])
def test_covariance_is_that_of_a_random_walk(length):
    generator = torch.Generator().manual_seed(0)
    series = torch.zeros(40_000, length, 2, dtype=torch.float64)
    walk = random_walk(series, 0.3, generator)
    assert walk.shape == series.shape
    assert walk.dtype == series.dtype
    # Two values share the increments up to the earlier one.
    steps = torch.arange(1, length + 1, dtype=torch.float64)
    expected = 0.3**2 / length * torch.minimum(steps[:, None], steps)
    for channel in walk.unbind(-1):
        covariance = channel.mT @ channel / len(channel)
        assert (covariance - expected).abs().max() < 0.03 * 0.3**2
        assert channel.mean(0).abs().max() < 0.01
    # Channels and nodes are independent.
    across = (walk[..., 0] * walk[..., 1]).mean()
    neighbours = (walk[1:] * walk[:-1]).mean()
    assert max(across.abs(), neighbours.abs()) < 0.02 * 0.3**2


@pytest.mark.parametrize("shape", [(0, 2, 3), (3, 1, 2), (1, 4, 1)])
def test_a_generator_repeats_it(shape):
    first, second = (
        random_walk(torch.zeros(shape), 1.0, torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    torch.manual_seed(1)
    first = random_walk(torch.zeros(shape), 1.0)
    torch.manual_seed(1)
    assert torch.equal(random_walk(torch.zeros(shape), 1.0), first)
