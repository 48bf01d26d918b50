"""Erwin models of the tests, and how their outputs are compared."""

import pytest
import torch
from clouds import randomised

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import Erwin

B = 4
EVERY_SIZE = list(range(5 * B + 4))  # clouds of 0 to 5B + 3 points
MIXED = [0, 13, 1, 22, 2, 0, 5, 3, 0]


def arguments(strides=(2, 2), **kwargs):
    """Arguments with one value per level, as the oracle needs; three outputs."""
    levels = len(strides) + 1
    hidden = [8]
    for stride in strides:
        hidden.append(hidden[-1] if stride == 1 else hidden[-1] + 4)
    return {
        "in_channels": 2,
        "hidden_channels": hidden,
        "out_channels": 3,
        "ball_sizes": (B,) * levels,
        "strides": tuple(strides),
        "enc_depths": (2,) * levels,
        "enc_heads": (2,) * levels,
        "dec_depths": (2,) * (levels - 1),
        "dec_heads": (4,) * (levels - 1),
        "mp_steps": 1,
        "rotate": 45.0,
        **kwargs,
    }


def make(strides=(2, 2), seed=0, **kwargs):
    """A model in float64 and evaluation mode, with random values for all weights."""
    return randomised(Erwin(**arguments(strides, **kwargs)), seed).eval()


def assert_close(actual, expected, tolerance):
    """The tolerance is relative to the largest value."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.abs().max()


EVERY_TREE = [
    {"strides": (2, 2)},
    {"strides": (2, 2), "rotate": 0.0},
    {"strides": (3,)},
    {"strides": (1,)},
    {"strides": (2, 2), "layout": "perfect"},
]
every_tree = pytest.mark.parametrize("kwargs", EVERY_TREE, ids=str)


def tree_of(model, data):
    return Tree.from_data(model.tree_transform()(data), model.tree_config)


def small_weights(**kwargs):
    """Keeps the initial weights, whose activations are of order one."""
    torch.manual_seed(0)
    return Erwin(**arguments(**kwargs)).eval()
