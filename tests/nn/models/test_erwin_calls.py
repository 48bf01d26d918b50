"""Ways to call Erwin, and trees that it refuses."""

import pytest
import torch
from clouds import cloud, ragged
from erwins import make, tree_of

from torch_geometric_erwin import ball_tree


@pytest.mark.parametrize("attach", [False, True])
def test_ways_to_call(attach):
    model, batch = make(), ragged([13, 0, 1, 22])  # the last cloud is not empty
    tree = tree_of(model, batch)
    data = model.tree_transform()(batch) if attach else batch
    expected = model(data)
    x, pos, edge_index = batch.x, batch.pos, batch.edge_index
    assert torch.equal(model(x, pos, edge_index, ptr=batch.ptr), expected)
    assert torch.equal(model(x, pos, edge_index, batch=batch.batch), expected)
    assert torch.equal(model(x, pos, edge_index, ptr=batch.ptr, tree=tree), expected)
    del data.ptr
    assert torch.equal(model(data), expected)


def test_single_data_without_ptr():
    model, data = make(), cloud(22)
    expected = model(data.x, data.pos, data.edge_index, ptr=torch.tensor([0, 22]))
    assert torch.equal(model(data), expected)
    assert torch.equal(model(data.x, data.pos, data.edge_index), expected)
    assert torch.equal(model(model.tree_transform()(data)), expected)


STALE = {
    "fewer nodes": lambda data: data.subgraph(torch.arange(20)),
    "other order of nodes": lambda data: data.subgraph(torch.arange(22).flip(0)),
    "other ball sizes": lambda data: make((2,), ball_sizes=(8, 8)).tree_transform()(
        data
    ),
    "other strides": lambda data: make((4,)).tree_transform()(data),
    "other layout": lambda data: make((2,), layout="perfect").tree_transform()(data),
    "other rotation": lambda data: make((2,), rotate=0.0).tree_transform()(data),
}


@pytest.mark.parametrize("change", STALE.values(), ids=[*STALE])
def test_tree_that_does_not_fit_is_refused(change):
    model = make((2,))
    data = change(model.tree_transform()(cloud(22)))
    with pytest.raises(ValueError, match=r"tree_transform|apply 'BallTree' again"):
        model(data)


def test_tree_of_other_clouds_is_refused():
    model, data = make(), ragged([13, 9])
    other = tree_of(model, ragged([9, 13]))
    message = r"the tree was built for: offsets \[0, 9, 22\] \(got \[0, 13, 22\]"
    with pytest.raises(ValueError, match=message):
        model(data.x, data.pos, data.edge_index, ptr=data.ptr, tree=other)


def test_tree_of_other_configuration_is_refused():
    model, data = make(), cloud(13)
    tree = ball_tree(data.pos, ball_sizes=8, strides=[2, 2])
    with pytest.raises(ValueError, match=r"built for 'balls=8,8,8.*needed is 'balls=4"):
        model(data.x, data.pos, data.edge_index, tree=tree)
