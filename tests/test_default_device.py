"""Data on the host works when the default device of new tensors is another one."""

import pytest
import torch
from clouds import ragged

from torch_geometric_erwin import ball_tree, knn_graph, radius_graph
from torch_geometric_erwin.nn import Erwin

BATCH = ragged([20, 0, 1, 9], dtype=torch.float32)


@pytest.fixture
def elsewhere():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_trees_and_searches(elsewhere):
    tree = ball_tree(BATCH.pos, ptr=BATCH.ptr, ball_sizes=[8, 8], strides=[2])
    for graph in (knn_graph, radius_graph):
        edges = graph(BATCH.pos, 2, ptr=BATCH.ptr, tree=tree)
        assert edges.device.type == tree.perm.device.type == "cpu"
    assert torch.equal(tree.update(BATCH.pos).perm, tree.perm)


@pytest.mark.parametrize("given", [False, True])
def test_a_model(elsewhere, given):
    with torch.device("cpu"):
        model = Erwin(2, [16, 16], 3, ball_sizes=8)
    args = (BATCH.x, BATCH.pos, BATCH.edge_index)
    config = model.tree_config
    tree = ball_tree(
        BATCH.pos, ptr=BATCH.ptr, ball_sizes=config.ball_sizes, strides=config.strides
    )
    out = model(*args, ptr=BATCH.ptr, tree=tree if given else None)
    out.sum().backward()
    assert out.device.type == "cpu"
