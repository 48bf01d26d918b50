"""Data and models of the tests of rollouts, and what a rollout should do."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from clouds import randomised
from torch_geometric.data import Batch, Data

from torch_geometric_erwin.nn import Erwin

SIZES = [20, 0, 1, 8, 9, 7]
every_history = pytest.mark.parametrize("history", [1, 2, 3])
both = pytest.mark.parametrize("moving", [False, True], ids=["fixed", "moving"])


class Spy(torch.nn.Module):
    """A linear model of features and positions, which keeps what it was called with."""

    def __init__(self, in_channels, out_channels=3, dim=3):
        super().__init__()
        generator = torch.Generator().manual_seed(in_channels)
        size = (in_channels + dim, out_channels)
        weight = torch.randn(size, generator=generator, dtype=torch.float64)
        self.weight = torch.nn.Parameter(0.1 * weight)
        self.calls = []

    def forward(self, x, pos, edge_index=None, *, ptr=None, tree=None):
        self.calls.append({"x": x, "pos": pos, "edge_index": edge_index, "tree": tree})
        parts = [pos] if x is None else [x, pos]
        return torch.cat(parts, dim=-1) @ self.weight


def sample(window, n=10, channels=3, **kwargs):
    """A cloud with the states of a window, in float64."""
    generator = torch.Generator().manual_seed(100 * n + window)
    rand = partial(torch.rand, generator=generator, dtype=torch.float64)
    states = rand(n, window, channels).cumsum(1)
    return Data(pos=rand(n, 3), states=states, **kwargs)


def batch_of(sizes, window, **kwargs):
    return Batch.from_data_list([sample(window, n, **kwargs) for n in sizes])


def plain_loop(model, data, steps, *, moving):
    """What Rollout should do, for a model without noise, statistics and boundaries."""
    states = [*data.states[:, : model.window].unbind(1)]
    weight = model.model.weight
    for _ in range(steps):
        if moving:
            speeds = [b - a for a, b in pairwise(states)]
            seen = [*speeds[len(speeds) - model.history :], states[-1]]
            new_speed = speeds[-1] + torch.cat(seen, dim=-1) @ weight
            states.append(states[-1] + new_speed)
        else:
            seen = [*states[len(states) - model.history :], data.pos]
            states.append(states[-1] + torch.cat(seen, dim=-1) @ weight)
    return torch.stack(states[model.window :], 1)


def close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(1, expected.abs().max())


@both
def recording_erwin(history, dim=3):
    """Erwin in float64, and the trees and edges that it was called with."""
    model = Erwin(3 * history, [8, 8], 3, ball_sizes=4, mp_steps=0, dim=dim)
    model, calls = randomised(model), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    return model, calls
