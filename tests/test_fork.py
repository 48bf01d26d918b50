"""A forked process does not wait for its parent's threads, which it does not have."""

import os

import numpy as np
import pytest
import torch
from forks import passes_in_child
from torch_geometric.data import Batch, Data

from torch_geometric_erwin import (
    Tree,
    _native,
    ball_tree,
    batch_to_ptr,
    knn,
    knn_graph,
    knn_interpolate,
    masked_mean,
    pad_batch,
    radius,
    radius_graph,
    to_original,
)
from torch_geometric_erwin.datasets import linear_velocity
from torch_geometric_erwin.nn import MPNN, Erwin, ball_attention
from torch_geometric_erwin.transforms import BallTree, TreeKNNGraph, TreeRadiusGraph
from torch_geometric_erwin.visualization import ball_of_row

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

SORT = BallTree(32, reorder=True)
N = 40_000  # points: PyTorch's operators use a second thread from 32,768 values on


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def batch():
    """Two clouds with edges and a tree."""
    generator = torch.Generator().manual_seed(0)
    sizes = (N - 10_000, 10_000)
    clouds = [Data(pos=torch.rand(n, 3, generator=generator)) for n in sizes]
    transform = BallTree(ball_sizes=32, strides=[4])
    return TreeKNNGraph(3)(transform(Batch.from_data_list(clouds)))


def tree_of(batch):
    return ball_tree(batch.pos, ptr=batch.ptr, ball_sizes=32, strides=[4])


def attend(batch):
    x, tree = batch.pos.unsqueeze(1), tree_of(batch)
    args = (x, x, x, batch.pos, tree.ball_len[0], torch.tensor([-1.0]))
    return ball_attention(*args, ball_size=32, perm=tree.global_perm())


def gradient(model, batch):
    torch.manual_seed(0)
    model.reset_parameters()
    model(batch).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def erwin(batch):
    model = Erwin(0, [4, 8], 3, ball_sizes=32, strides=[4], mp_steps=1)
    return gradient(model, batch)


def mpnn(batch):
    return gradient(MPNN(0, 4, 3, num_layers=1), batch)


CALLS = {
    "ball_tree": lambda batch: tree_of(batch).perm,
    "ties": lambda batch: ball_tree(batch.pos, ball_sizes=2, ties="coordinates").perm,
    "Tree.update": lambda batch: tree_of(batch).update(-batch.pos).perm,
    "Tree.levels": lambda batch: tree_of(batch).levels(batch.pos)[1].offset_rot,
    "Tree.to_nodes": lambda batch: tree_of(batch).to_nodes(batch.pos),
    "Tree.pad": lambda batch: tree_of(batch).pad(2 * N, 4).perm,
    "knn_graph": lambda batch: knn_graph(batch.pos, 3, ptr=batch.ptr),
    "radius_graph": lambda batch: radius_graph(batch.pos, 0.01, ptr=batch.ptr),
    "knn": lambda batch: knn(batch.pos, -batch.pos, 3, batch.batch, batch.batch),
    "radius": lambda batch: radius(
        batch.pos, batch.pos, 0.01, batch.batch, batch.batch
    ),
    "knn_interpolate": lambda batch: knn_interpolate(batch.pos, batch.pos, -batch.pos),
    "batch_to_ptr": lambda batch: batch_to_ptr(batch.batch),
    "Tree.from_data": lambda batch: Tree.from_data(batch).perm,
    "to_original": lambda batch: to_original(batch.pos, SORT(batch)),
    "pad_batch": lambda batch: pad_batch(batch, 2 * N, 4, num_edges=8 * N).pos,
    "masked_mean": lambda batch: masked_mean(batch.pos, batch.pos[:, 0] > 0.5),
    "BallTree": lambda batch: BallTree(32, [4])(Data(pos=batch.pos)).perm,
    "TreeKNNGraph": lambda batch: TreeKNNGraph(2)(Data(pos=batch.pos)).edge_index,
    "TreeRadiusGraph": lambda batch: (
        TreeRadiusGraph(0.01)(Data(pos=batch.pos)).edge_index
    ),
    "ball_of_row": lambda batch: ball_of_row(tree_of(batch), 0),
    "linear_velocity": lambda batch: linear_velocity(batch.pos, 0.1, mesh_size=16),
    "ball_attention": attend,
    "MPNN": mpnn,
    "Erwin": erwin,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=[*CALLS])
def test_functions_after_threads_in_the_parent(batch, call):
    if call in (mpnn, erwin) and torch.cuda.is_available():
        pytest.skip("PyTorch refuses a backward pass in a fork of a process with a GPU")
    torch.set_num_threads(1)
    expected = call(batch).numpy()
    torch.set_num_threads(2)
    assert torch.ones(4 * N).exp().min() > 1  # starts a thread

    def check():  # by NumPy, which has no part in this
        np.testing.assert_array_equal(call(batch).numpy(), expected)

    assert passes_in_child(check)


def test_threads_of_the_child_and_its_child(batch):
    def check():
        assert torch.get_num_threads() == 1
        assert _native.context(batch.pos).num_threads == 1

    def check_twice():
        check()
        assert passes_in_child(check)

    assert passes_in_child(check_twice)
    assert torch.get_num_threads() == 2
    assert _native.context(batch.pos).num_threads == 2
