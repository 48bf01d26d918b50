"""Edges between the rows of coarse levels, compared with sets and with PyG."""

import dataclasses

import pytest
import torch
from clouds import edged, edges_of
from comparisons import assert_same
from torch.utils import _pytree as pytree
from torch_geometric.data import Batch
from torch_geometric.utils import coalesce, remove_self_loops
from trees import LAYOUTS, MIXED, offsets, random_pos

from torch_geometric_erwin import Level, Tree, ball_tree
from torch_geometric_erwin.transforms import BallTree

each_layout = pytest.mark.parametrize(("layout", "ball_sizes", "strides"), LAYOUTS)
BATCHES = [MIXED, [0], [1], [2], [], [0, 30]]
SIZES = [9, 0, 1, 20, 2]


def random_tree(layout, ball_sizes, strides, sizes):
    pos = random_pos(sum(sizes), dtype=torch.float64)
    sizes = {"ball_sizes": ball_sizes, "strides": strides}
    return pos, lambda ptr: ball_tree(pos, ptr=ptr, layout=layout, **sizes)


def rows_below(tree, level):
    """The first row of every node on a level, by walking up group by group."""
    rows = tree.global_perm().tolist()
    row = [rows.index(node) for node in range(tree.num_nodes)]
    for groups in tree.group_len[:level]:
        parent = [i for i, count in enumerate(groups.tolist()) for _ in range(count)]
        row = [parent[r] for r in row]
    return row


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
@each_layout
def test_rows_and_edges_equal_definition(layout, ball_sizes, strides, sizes):
    _, build = random_tree(layout, ball_sizes, strides, sizes)
    tree = build(offsets(sizes))
    edge_index = edges_of(sum(sizes))
    for level in range(len(ball_sizes)):
        row = rows_below(tree, level)
        assert tree.row_of_node(level).tolist() == row
        pairs = [(row[i], row[j]) for i, j in edge_index.T.tolist()]
        if level > 0:
            pairs = sorted({(i, j) for i, j in pairs if i != j})
        edges = tree.coarse_edges(edge_index, level)
        assert edges.shape == (2, len(pairs))
        assert edges.T.tolist() == [list(pair) for pair in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_features_are_means_as_of_pyg(sizes, dtype):
    n = sum(sizes)
    _, build = random_tree("balanced", (8, 8, 8), (2, 3), sizes)
    tree, edge_index = build(offsets(sizes)), edges_of(n)
    edge_attr = random_pos(edge_index.size(1), 3, dtype=dtype)
    for level in (1, 2):
        given = edge_attr.clone().requires_grad_()
        edges, means = tree.coarse_edges(edge_index, level, given)
        other = edge_attr.clone().requires_grad_()
        rows = tree.row_of_node(level)[edge_index]
        expected, theirs = coalesce(
            *remove_self_loops(rows, other),
            num_nodes=tree.num_rows(level),
            reduce="mean",
        )
        assert torch.equal(edges, expected)
        assert means.dtype == dtype
        torch.testing.assert_close(means, theirs)
        weight = random_pos(means.size(0), 3, seed=1, dtype=dtype)
        for mean in (means, theirs):
            (mean * weight).sum().backward()
        torch.testing.assert_close(given.grad, other.grad)
    edges, means = tree.coarse_edges(edge_index, 0, edge_attr)
    assert torch.equal(edges, tree.row_of_node(0)[edge_index])
    assert torch.equal(means, edge_attr)


def test_one_feature_needs_no_axis():
    tree = ball_tree(random_pos(20), ball_sizes=4, strides=[2])
    edge_index, edge_attr = edges_of(20), torch.rand(80)
    _, means = tree.coarse_edges(edge_index, 1, edge_attr)
    _, expected = tree.coarse_edges(edge_index, 1, edge_attr[:, None])
    assert torch.equal(means, expected)


def test_edges_of_a_cloud_do_not_depend_on_others():
    clouds = [edged(n) for n in SIZES]
    batch = Batch.from_data_list(clouds)
    tree = ball_tree(batch.pos, batch.batch, ball_sizes=4, strides=[2, 2])
    for level in (1, 2):
        edges, means = tree.coarse_edges(batch.edge_index, level, batch.edge_attr)
        own = []
        for data, start in zip(clouds, tree.ptr(level).tolist()):
            alone = ball_tree(data.pos, ball_sizes=4, strides=[2, 2])
            part, mean = alone.coarse_edges(data.edge_index, level, data.edge_attr)
            own.append((part + start, mean))
        assert torch.equal(edges, torch.cat([part for part, _ in own], 1))
        assert torch.equal(means, torch.cat([mean for _, mean in own]))


def test_levels_have_the_edges_of_the_tree():
    pos, edge_index = random_pos(50), edges_of(50)
    edge_attr = random_pos(200, 2)
    plain = ball_tree(pos, ball_sizes=8, strides=[2, 2])
    tree = plain.with_edges(edge_index, edge_attr)
    levels = tree.levels(pos, edge_index, edge_attr)
    for l, level in enumerate(levels):
        edges, means = plain.coarse_edges(edge_index, l, edge_attr)
        assert torch.equal(level.edge_index, edges)
        assert torch.equal(level.edge_attr, means)
        assert torch.equal(level.rotated().edge_attr, means)
    assert levels[0].edge_index.shape == edge_index.shape
    assert [level.edge_index for level in plain.levels(pos)] == [None] * 3
    bare = plain.with_edges(edge_index).levels(pos, edge_index)
    assert [level.edge_attr for level in bare] == [None] * 3
    assert torch.equal(bare[2].edge_index, levels[2].edge_index)
    with pytest.raises(ValueError, match="'edge_index' is missing beside 'edge_attr'"):
        tree.levels(pos, None, edge_attr)


def test_update_and_pad_leave_no_edges_that_are_wrong():
    pos = random_pos(30)
    tree = ball_tree(pos, ball_sizes=8, strides=[2]).with_edges(edges_of(30))
    moved = tree.update(-pos)
    assert moved.edges == moved.edge_means == ()
    message = r"a tree with edges cannot be padded, .*: build it without"
    with pytest.raises(ValueError, match=message):
        tree.pad(40, 2)
    with pytest.raises(ValueError, match="the tree is padded: it has to get its edges"):
        moved.pad(40, 2).with_edges(edges_of(30))


BAD = {
    "a node too many": (torch.tensor([[0], [30]]), None, "must name one of 30 nodes"),
    "int32": (torch.zeros(2, 1).int(), None, "'edge_index' must be int64"),
    "one row": (torch.zeros(1, 4).long(), None, r"must have shape \[2, E\]"),
    "fewer features": (
        edges_of(30),
        torch.rand(3, 2),
        r"'edge_attr' must have shape \[120, 2\] \(got \[3, 2\]\)",
    ),
    "whole numbers": (edges_of(30), torch.ones(120, 1).int(), "'edge_attr' must be fl"),
}


@pytest.mark.parametrize(("edge_index", "edge_attr", "message"), BAD.values(), ids=BAD)
def test_bad_edges(edge_index, edge_attr, message):
    tree = ball_tree(random_pos(30), ball_sizes=8, strides=[2])
    for call in (
        lambda: tree.coarse_edges(edge_index, 1, edge_attr),
        lambda: tree.with_edges(edge_index, edge_attr),
        lambda: tree.levels(random_pos(30), edge_index, edge_attr),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    with pytest.raises(ValueError, match="'level' must be at most 1"):
        tree.coarse_edges(edges_of(30), 2)


def test_trees_without_edges_have_the_parts_they_had():
    tree = ball_tree(random_pos(20), ball_sizes=4, strides=[2])
    (values, _), count = pytree.tree_flatten(tree), 4 + 2 + 1 + 2
    assert len(values) == count
    with_edges = tree.with_edges(edges_of(20))
    values, spec = pytree.tree_flatten(with_edges)
    assert sum(v is with_edges.edges[0] for v in values) == 1
    assert_same(pytree.tree_unflatten(values, spec), with_edges)
    moved = with_edges.to("meta")
    assert moved.edges[0].is_meta
    level = Level.build(
        *(random_pos(3), torch.tensor([3])),
        ball_size=4,
        edge_index=torch.zeros(2, 1).long(),
        edge_attr=torch.ones(1, 2),
    )
    values, spec = pytree.tree_flatten(level)
    again = pytree.tree_unflatten(values, spec)
    assert again.edge_attr is level.edge_attr


def test_a_level_checks_the_features_of_its_edges():
    pos, balls = random_pos(3), torch.tensor([3])
    edge_index = torch.zeros(2, 1).long()
    for attr, message in (
        (torch.ones(2, 2), r"'edge_attr' must have shape \[1, 2\]"),
        (torch.ones(1), r"'edge_attr' must have shape \[E, F\]"),
        (torch.ones(1, 2).int(), "'edge_attr' must be floating-point"),
    ):
        given = {"edge_index": edge_index, "edge_attr": attr}
        with pytest.raises((TypeError, ValueError), match=message):
            Level.build(pos, balls, ball_size=4, **given)
        level = Level.build(pos, balls, ball_size=4)
        message = message.replace("'edge", r"'level\.edge")
        with pytest.raises((TypeError, ValueError), match=message):
            dataclasses.replace(level, **given).check()
    with pytest.raises(ValueError, match="'edge_index' is missing beside 'edge_attr'"):
        Level.build(pos, balls, ball_size=4, edge_attr=torch.ones(1, 2))


def test_texts_have_sizes_and_no_tensors():
    data = BallTree(4, [2], edges=True)(edged(9))
    tree = Tree.from_data(Batch.from_data_list([data, data]))
    count = tree.edges[0].size(1)
    config = "balls=4,4 strides=2 rotate=45.0 layout=balanced"
    rows = f"clouds=2, rows=[18, 10], edges=[{count}]"
    assert repr(tree) == f"Tree('{config}', {rows})"
    plain = ball_tree(data.pos, ball_sizes=4, strides=[2])
    assert repr(plain.pad(20, 2)).endswith("clouds=2, rows=[20, 11], padded)")
    level = Tree.from_data(data).levels(data.pos, data.edge_index)[0]
    text = f"Level(rows=9, clouds=1, balls=3 x 4, edges={data.num_edges}"
    assert repr(level) == f"{text})"
    assert repr(level.rotated()) == f"{text}, rotated)"
