"""Edges of coarse levels in PyG data: stored, batched, taken apart and compiled."""

import copy
import dataclasses
import pickle

import pytest
import torch
from clouds import edged
from comparisons import assert_same
from compiled import no_recompilation
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from trees import random_pos

from torch_geometric_erwin import Tree, pad_batch
from torch_geometric_erwin.transforms import BallTree

SIZES = [9, 0, 1, 20, 2]


CONFIGS = {
    "three levels": {"ball_sizes": 4, "strides": [2, 2]},
    "no rotation": {"ball_sizes": 4, "strides": [3], "rotate": 0.0},
    "perfect": {"ball_sizes": 4, "strides": [2], "layout": "perfect"},
    "one level": {"ball_sizes": 4},
    "runs": {"ball_sizes": 4, "strides": [2], "runs": [[2], []]},
    "prefix": {"ball_sizes": 4, "strides": [2, 2], "prefix": "ball_"},
    "sorted": {"ball_sizes": 4, "strides": [2, 2], "reorder": True},
}


@pytest.mark.parametrize("has_attr", [False, True], ids=["bare", "features"])
@pytest.mark.parametrize("kwargs", CONFIGS.values(), ids=[*CONFIGS])
def test_data_keeps_the_edges(kwargs, has_attr):
    transform = BallTree(**kwargs, edges=True)
    prefix = kwargs.get("prefix", "")
    clouds = [edged(n, sparse=n == 2) for n in SIZES]
    if not has_attr:
        for data in clouds:
            del data.edge_attr
    batch = Batch.from_data_list(clouds)
    whole = transform(batch)
    joined = Batch.from_data_list([transform(data) for data in clouds])
    plain = BallTree(**kwargs)(batch)
    tree = Tree.from_data(plain, prefix=prefix)
    expected = tree.with_edges(plain.edge_index, plain.edge_attr)
    for data in (
        whole,
        joined,
        copy.deepcopy(whole),
        pickle.loads(pickle.dumps(whole)),
    ):
        assert_same(Tree.from_data(data, prefix=prefix), expected)
        assert data.num_edges == batch.num_edges
    for data in (whole, joined):
        for own, alone in zip(data.to_data_list(), clouds, strict=True):
            alone = transform(alone)
            for name, value in alone.to_dict().items():
                if "tree_edge" in name:
                    assert torch.equal(own[name], value), name
            ours = Tree.from_data(own, prefix=prefix)
            assert_same(ours, Tree.from_data(alone, prefix=prefix))
    names = [name for name in whole.to_dict() if "tree_edge" in name]
    levels = len(kwargs.get("strides", []))
    assert len(names) == (levels > 0) + levels * (1 + has_attr)
    assert not any("index" in name for name in names)


def test_data_loader_keeps_the_edges():
    transform = BallTree(4, [2], edges=True)
    clouds = [transform(edged(n)) for n in SIZES]
    for batch in DataLoader(clouds, batch_size=2):
        tree = Tree.from_data(batch)
        again = replace_edges(tree).with_edges(batch.edge_index, batch.edge_attr)
        assert_same(tree, again)


def replace_edges(tree, edges=(), means=()):
    return dataclasses.replace(tree, edges=edges, edge_means=means)


def test_features_that_are_no_means_are_left_out():
    data = edged(20)
    data.edge_attr = torch.randint(3, (80,))
    data = BallTree(4, [2], edges=True)(data)
    assert "tree_edge_1" in data
    assert "tree_edge_attr_1" not in data


def test_a_tree_without_edges_replaces_one_that_has_them():
    data = BallTree(4, [2], edges=True)(edged(20))
    assert not any("tree_edge" in name for name in BallTree(4, [2])(data).to_dict())


def test_what_cannot_have_edges_is_refused():
    transform = BallTree(4, [2], edges=True)
    with pytest.raises(ValueError, match=r"'data\.edge_index' is missing; apply"):
        transform(Data(pos=random_pos(9)))
    batch = Batch.from_data_list([edged(9), edged(9)])
    batch.edge_index[:, 0] = torch.tensor([0, 17])
    with pytest.raises(ValueError, match="an edge between two clouds"):
        transform(batch)
    batch = transform(Batch.from_data_list([edged(9), edged(9)]))
    with pytest.raises(ValueError, match="a tree with edges cannot be padded"):
        pad_batch(batch, 30, 3, num_edges=90)


def test_tables_that_were_changed_are_refused():
    def data():
        return BallTree(4, [2, 2], edges=True)(edged(20))

    cut = data()
    cut.tree_edge_1 = cut.tree_edge_1[1:]
    with pytest.raises(ValueError, match=r"'tree_edge_1' has shape .* took it for an"):
        Tree.from_data(cut)
    lost = data()
    del lost.tree_edge_2
    with pytest.raises(ValueError, match="the tree has no 'tree_edge_2'"):
        Tree.from_data(lost)
    beyond = data()
    beyond.tree_edge_1[0, 0] = 10
    with pytest.raises(ValueError, match=r"'edges\[0\]' must name one of 10 nodes"):
        Tree.from_data(beyond)
    fewer = data()
    fewer.tree_edge_attr_2 = fewer.tree_edge_attr_2[1:]
    with pytest.raises(ValueError, match=r"'edge_means' has .* rows for"):
        Tree.from_data(fewer)


def test_compiled_code_reads_the_edges_of_data():
    transform = BallTree(4, [2, 2], edges=True)

    def sums(data):
        levels = Tree.from_data(data, transform.config).levels(data.pos)
        return torch.stack(
            [
                level.pos.new_zeros(level.num_rows, 3)
                .index_add(0, level.edge_index[0], level.pos[level.edge_index[1]])
                .square()
                .sum()
                for level in levels[1:]
            ]
        )

    torch.compiler.reset()
    compiled = torch.compile(sums, fullgraph=True, dynamic=True, backend="aot_eager")
    for step, sizes in enumerate([[40, 27, 0, 5, 3], [21, 13, 50], [9, 30]]):
        batch = Batch.from_data_list([transform(edged(n)) for n in sizes])
        with no_recompilation(step):
            torch.testing.assert_close(compiled(batch), sums(batch))
