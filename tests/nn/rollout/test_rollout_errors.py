"""What a rollout says of bad data, and of what models and functions return."""

import copy
from functools import partial

import pytest
import torch
from rollouts import Spy, both, sample
from torch_geometric.data import Data

from torch_geometric_erwin import knn_graph
from torch_geometric_erwin.nn import Rollout


def test_text():
    model = Rollout(torch.nn.Linear(2, 2), history=2, noise=1e-3)
    assert str(model) == (
        "Rollout(Linear(in_features=2, out_features=2, bias=True), history=2, "
        "moving=False, noise=0.001)"
    )


BAD = {
    "no states": ({"states": None}, "'data.states' is missing"),
    "too few states": ({"states": torch.rand(10, 2, 3)}, "at least 3 states W, 2 that"),
    "two axes": ({"states": torch.rand(10, 3)}, r"shape \[N, W, C\] .*got \[10, 3\]"),
    "other nodes": ({"pos": torch.rand(9, 3)}, r"'states' .* \[9, W, C\].*'pos'"),
    "other dimension": ({"pos": torch.rand(10, 2)}, r"'pos' must have shape \[10, 3, "),
    "features": ({"x": torch.rand(9, 2)}, r"'x' must have shape \[10, 2\]"),
    "a mask": ({"boundary_mask": torch.ones(9, dtype=torch.bool)}, "'boundary_mask'"),
    "flags": ({"boundary_mask": torch.ones(10)}, "'boundary_mask' must be"),
    "a device": ({"x": torch.rand(10, 2, device="meta")}, "'x' is on meta"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_named(name):
    changes, message = BAD[name]
    data = sample(3)
    for key, value in changes.items():
        data[key] = value
    with pytest.raises((TypeError, ValueError), match=message):
        Rollout(Spy(3), moving=True)(data)


TELL_NODES = {
    "pos": torch.rand(7, 3),
    "x": torch.rand(7, 2),
    "boundary_mask": torch.ones(7, dtype=torch.bool),
    "node_mask": torch.ones(7, dtype=torch.bool),
    "batch": torch.zeros(7, dtype=torch.long),
    "ptr": torch.tensor([0, 3, 7]),
    "num_nodes": 7,
}


@both
@pytest.mark.parametrize("name", TELL_NODES)
def test_states_with_time_first_are_blamed(name, moving):
    model = Rollout(torch.nn.Linear(3, 3), moving=moving)
    data = Data(states=torch.rand(5, 7, 3))
    data[name] = TELL_NODES[name]
    methods = (model.loss, model.windows, model.set_statistics)
    for method in (*methods, partial(model.rollout, steps=1)):
        with pytest.raises(ValueError, match=rf"'states' .*'{name}' has .*; swap the"):
            method(data)
    data.states = torch.rand(5, 4, 3)  # other nodes, but not swapped
    with pytest.raises(ValueError, match=rf"\[7, W, C\].*'{name}' has .*4, 3\]\)$"):
        model.loss(data)


CHANGES = pytest.mark.parametrize("scale", [1e-4, 1e4])


@both
@CHANGES
def test_forgotten_statistics_are_told_once(scale, moving):
    model = Rollout(torch.nn.Linear(3, 3), moving=moving).double()
    data = sample(5)
    data.states = scale * data.states
    with pytest.warns(UserWarning, match="call 'model.set_statistics") as told:
        model.loss(data)
    assert len(told) == 1
    assert told[0].filename == __file__
    model.loss(data)  # a warning is an error
    model.set_statistics(data)
    model.loss(data)
    copy.deepcopy(model).loss(data)
    fresh = Rollout(torch.nn.Linear(3, 3), moving=moving).double()
    fresh.load_state_dict(model.state_dict())
    fresh.loss(data)


@both
def test_there_is_no_warning_of_ordinary_changes(moving):
    def new(**kwargs):
        return Rollout(torch.nn.Linear(3, 3), moving=moving, **kwargs).double()

    data = sample(5)
    new().loss(data)
    still = sample(5)
    still.states = torch.zeros_like(still.states)
    new().loss(still)  # nothing to predict
    small = sample(5)
    small.states = 1e-4 * small.states
    new().eval().loss(small)  # no training
    new().rollout(small, 1)
    new(noise=0.1).loss(small)  # what is predicted undoes the noise
    wall = data.clone()
    wall.boundary_mask = torch.arange(10) > 7
    wall.states[wall.boundary_mask] *= 1e6  # is not predicted
    new().loss(wall)


def test_what_functions_return_is_checked():
    model = Rollout(Spy(3), features=lambda pos: pos[:9])
    with pytest.raises(
        ValueError, match=r"'features\(pos\)' must have shape \[10, 3\]"
    ):
        model.rollout(sample(1), 1)
    data = sample(1)
    del data.pos
    with pytest.raises(ValueError, match="'pos' is missing"):
        model.rollout(data, 1)


def test_what_the_model_returns_is_checked():
    with pytest.raises(ValueError, match=r"'model\(x\)' must have shape \[10, 3\]"):
        Rollout(Spy(3, out_channels=2)).rollout(sample(1), 1)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="'history' must be at least 1"):
        Rollout(Spy(3), history=0)
    with pytest.raises(ValueError, match="'moving' must be True"):
        Rollout(Spy(3), graph=knn_graph)
    model = Rollout(Spy(3))
    with pytest.raises(ValueError, match=r"'boundary' must have shape \[10, 2, 3"):
        model.rollout(sample(1), 2, torch.rand(10, 3, 3))
    with pytest.raises(ValueError, match="no 'boundary_mask'"):
        model.rollout(sample(1), 2, torch.rand(10, 2, 3))
