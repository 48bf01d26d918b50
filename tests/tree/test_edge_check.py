"""Edges that changed after a tree got those of its coarse levels are refused."""

import copy
from itertools import combinations_with_replacement, product

import pytest
import torch
from clouds import edged
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch
from trees import offsets

from torch_geometric_erwin import Tree
from torch_geometric_erwin.transforms import BallTree
from torch_geometric_erwin.tree.edge_check import edge_code


def other_edges(data):
    """Changes of edges that a tree must notice, and after each the data."""
    index = data.edge_index
    source, target = index
    changes = {
        "fewer": index[:, 1:],
        "none": index[:, :0],
        "more": torch.cat([index, index[:, :1]], 1),
        "other direction": index.flip(0),
        "another end": torch.stack([source, target.roll(1)]),
        "replaced": torch.cat([index[:, 1:], index[:, 1:2]], 1),
    }
    for name, edges in changes.items():
        changed = copy.copy(data)
        changed.edge_index, changed.edge_attr = edges, torch.ones(edges.size(1), 2)
        yield name, changed


@pytest.mark.parametrize("reorder", [False, True])
def test_edges_that_changed_after_the_tree_are_refused(reorder):
    transform = BallTree(4, [2], edges=True, reorder=reorder)
    clouds = [transform(edged(n)) for n in (9, 30, 2)]
    first, data, last = clouds
    for name, changed in other_edges(data):
        for whole in (changed, Batch.from_data_list([first, changed, last])):
            with pytest.raises(ValueError, match="after all transforms that make or"):
                Tree.from_data(whole)
            tree = Tree.from_data(
                data if whole is changed else Batch.from_data_list(clouds)
            )
            with pytest.raises(ValueError, match=r"the \d+ edges of cloud \d are not"):
                tree.levels(whole.pos, whole.edge_index)
            assert len(tree.levels(whole.pos)) == 2, name
            again = tree.with_edges(whole.edge_index)
            assert len(again.levels(whole.pos, whole.edge_index)) == 2
    # The order of edges makes no difference, and neither do batches and their parts.
    data = copy.copy(data)
    data.edge_index, data.edge_attr = data.edge_index.flip(1), data.edge_attr.flip(0)
    batch = Batch.from_data_list([last, data, first, data])
    for part in (data, batch, *batch.to_data_list(), *batch[[3, 0]]):
        tree = Tree.from_data(part)
        tree.levels(part.pos, part.edge_index, part.edge_attr)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_features_that_changed_after_the_tree_are_refused(dtype):
    data = BallTree(4, [2, 2], edges=True)(edged(40))
    as_dtype = {
        name: value.to(dtype)
        for name, value in data
        if torch.is_tensor(value) and value.is_floating_point()
    }
    data = copy.copy(data).update(as_dtype)
    tree, attr = Tree.from_data(data), data.edge_attr
    assert tree.edge_means[0].dtype == dtype
    tree.levels(data.pos, data.edge_index, attr)
    for other in (10 * attr, attr.roll(1, 0), attr + 1, attr[:, :1], attr * torch.nan):
        with pytest.raises(ValueError, match="values of 'edge_attr' are not those"):
            tree.levels(data.pos, data.edge_index, other)
    tree.levels(data.pos, data.edge_index)  # whoever needs no features gives none


@pytest.mark.parametrize("n", [0, 1, 2])
def test_no_edges_are_edges_too(n):
    data = edged(n)
    data.edge_index, data.edge_attr = data.edge_index[:, :0], data.edge_attr[:0]
    data = BallTree(4, [2], edges=True)(data)
    Tree.from_data(data).levels(data.pos, data.edge_index, data.edge_attr)
    if n > 0:
        data.edge_index = torch.zeros(2, 1, dtype=torch.int64)
        with pytest.raises(ValueError, match="the 1 edges of cloud 0 are not the 0"):
            Tree.from_data(data)


def test_codes_tell_edges_apart():
    """All graphs of up to three edges between four nodes, with repetitions."""
    rows, lengths = torch.arange(4), torch.tensor([4])
    pairs = [*product(range(4), repeat=2)]
    codes = {
        tuple(edge_code(torch.tensor(edges).T, rows, lengths)[0].tolist())
        for count in (1, 2, 3)
        for edges in combinations_with_replacement(pairs, count)
    }
    assert len(codes) == 16 + 136 + 816  # of two and three, with repetitions
    assert all(0 <= checksum < 2**31 for _, checksum in codes)


@pytest.mark.parametrize("sizes", [[], [0], [1], [2, 0, 9], [0, 30, 1, 0]], ids=str)
def test_codes_of_clouds_do_not_depend_on_others(sizes):
    clouds = [edged(n) for n in sizes]
    first = offsets(sizes).tolist()
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(0, dtype=torch.int64)
    own = [torch.randperm(n, generator=generator) + i for n, i in zip(sizes, first)]
    nodes = torch.cat([none, *own])
    edges = [data.edge_index + i for data, i in zip(clouds, first)]
    whole = torch.cat([none.view(2, 0), *edges], 1)
    whole = whole[:, torch.randperm(whole.size(1), generator=generator)]
    found = edge_code(whole, nodes, torch.tensor(sizes, dtype=torch.int64))
    assert found.shape == (len(sizes), 2)
    for data, code, n, i in zip(clouds, found, sizes, first):
        alone = edge_code(data.edge_index, nodes[i : i + n] - i, torch.tensor([n]))
        assert torch.equal(code, alone[0])
        assert code[0] == data.num_edges


@pytest.mark.parametrize("count", [2, 100])
def test_features_that_changed_in_one_cloud_of_many_are_refused(count):
    sizes = [*range(5, 5 + count)]
    sizes[0] = 2000  # most edges are of one cloud
    transform = BallTree(4, [2], edges=True)
    clouds = [transform(edged(n)) for n in sizes]
    for changed in (0, 1, count - 1):
        batch = Batch.from_data_list(clouds)
        tree, attr = Tree.from_data(batch), batch.edge_attr.clone()
        tree.levels(batch.pos, batch.edge_index, attr)
        attr[batch.batch[batch.edge_index[0]] == changed] *= 1.1
        with pytest.raises(ValueError, match="values of 'edge_attr' are not those"):
            tree.levels(batch.pos, batch.edge_index, attr)


@pytest.mark.parametrize("channels", [0, 1, 7])
def test_any_number_of_features(channels):
    data = BallTree(4, [2], edges=True)(edged(30, channels=channels))
    loops = data.edge_index[0] == data.edge_index[1]
    assert loops.any()
    data.edge_attr[loops] = torch.nan  # no coarse edge stands for them
    tree = Tree.from_data(data)
    tree.levels(data.pos, data.edge_index, data.edge_attr)
    if channels > 0:
        data.edge_attr[~loops, -1] *= 0.9
        with pytest.raises(ValueError, match="values of 'edge_attr' are not those"):
            tree.levels(data.pos, data.edge_index, data.edge_attr)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("after", DTYPES, ids=str)
@pytest.mark.parametrize("before", DTYPES, ids=str)
def test_features_in_another_dtype_are_the_same(before, after):
    data = edged(100, channels=4)
    data.edge_attr = data.edge_attr.to(before)
    data = BallTree(4, [2, 2], edges=True)(data)
    attr = data.edge_attr.to(after)
    tree = Tree.from_data(data)  # its means stay in the dtype before
    tree.levels(data.pos, data.edge_index, attr)
    data.apply(lambda x: x.to(after) if x.is_floating_point() else x)
    tree = Tree.from_data(data)
    tree.levels(data.pos, data.edge_index, attr)
    for again in DTYPES:
        tree.levels(data.pos, data.edge_index, attr.to(again))


def test_edges_of_pyg_are_the_same():
    data = BallTree(4, [2], edges=True)(edged(30))
    edges = EdgeIndex(data.edge_index, sparse_size=(30, 30))
    level, _ = Tree.from_data(data).levels(data.pos, edges, data.edge_attr)
    assert level.edge_index.size(1) == data.num_edges
    data.edge_index = edges
    Tree.from_data(data)
    data.edge_index = EdgeIndex(edges.as_tensor().flip(0), sparse_size=(30, 30))
    with pytest.raises(ValueError, match="edges of cloud 0 are not"):
        Tree.from_data(data)
