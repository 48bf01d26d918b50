import pytest
import torch

pytest.importorskip(
    "torch_cluster",
    reason="the optional extra 'cluster' is not installed: 'make test-cluster'",
)
import torch_cluster

from torch_geometric_erwin.neighbors import knn, knn_graph, radius, radius_graph

SIZES = [0, 1, 2, 17, 0, 300, 64, 0]


def batch_of(sizes, dim, seed=0):
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand(sum(sizes), dim, generator=generator, dtype=torch.float64)
    return pos, ptr, batch


def as_set(edge_index):
    edges = {tuple(edge) for edge in edge_index.T.tolist()}
    assert len(edges) == edge_index.size(1)
    return edges


# Positions are random in float64: no two distances are equal, and every set is unique.
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_knn_graph(dim, loop, flow):
    pos, ptr, batch = batch_of(SIZES, dim)
    for k in (1, 6, 40):
        ours = knn_graph(pos, k, ptr=ptr, loop=loop, flow=flow)
        theirs = torch_cluster.knn_graph(pos, k, batch, loop=loop, flow=flow)
        assert as_set(ours) == as_set(theirs)


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_radius_graph(dim, loop, flow):
    pos, ptr, batch = batch_of(SIZES, dim)
    for r in (0.2, 0.5):
        ours = radius_graph(pos, r, ptr=ptr, loop=loop, flow=flow)
        theirs = torch_cluster.radius_graph(
            pos, r, batch, loop=loop, flow=flow, max_num_neighbors=len(pos)
        )
        assert len(theirs[0]) > 0
        assert as_set(ours) == as_set(theirs)


def test_radius_graph_with_a_limit():
    # torch-cluster keeps arbitrary neighbours within the radius, ours keeps the
    # nearest. So only the numbers per target must be equal.
    pos, ptr, batch = batch_of(SIZES, 3)
    ours = radius_graph(pos, 0.3, ptr=ptr, loop=True, max_num_neighbors=8)
    theirs = torch_cluster.radius_graph(pos, 0.3, batch, loop=True, max_num_neighbors=8)
    assert ours[1].bincount().equal(theirs[1].bincount())
    assert int(ours[1].bincount().max()) == 8


# Clouds that are empty in one set only, and in both.
OTHER_SIZES = [3, 0, 5, 40, 0, 8, 200, 0]


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_two_sets(dim):
    x, _, batch_x = batch_of(SIZES, dim)
    y, _, batch_y = batch_of(OTHER_SIZES, dim, seed=1)
    for k in (1, 6, 40):
        ours = knn(x, y, k, batch_x, batch_y)
        theirs = torch_cluster.knn(x, y, k, batch_x, batch_y)
        assert as_set(ours) == as_set(theirs)
    for r in (0.2, 0.5):
        ours = radius(x, y, r, batch_x, batch_y)
        theirs = torch_cluster.radius(
            x, y, r, batch_x, batch_y, max_num_neighbors=len(x)
        )
        assert len(theirs[0]) > 0
        assert as_set(ours) == as_set(theirs)
