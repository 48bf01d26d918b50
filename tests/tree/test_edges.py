"""Edges between the rows of coarse levels, compared with sets and with PyG."""

import copy
import dataclasses
import pickle

import pytest
import torch
from compiled import no_recompilation
from torch.utils import _pytree as pytree
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.utils import coalesce, remove_self_loops
from trees import LAYOUTS, MIXED, offsets, random_pos

from torch_geometric_erwin import Level, Tree, ball_tree, pad_batch
from torch_geometric_erwin.transforms import BallTree

each_layout = pytest.mark.parametrize(("layout", "ball_sizes", "strides"), LAYOUTS)
BATCHES = [MIXED, [0], [1], [2], [], [0, 30]]
SIZES = [9, 0, 1, 20, 2]


def edges_of(n, seed=0, count=None):
    """Random edges with repetitions and loops."""
    generator = torch.Generator().manual_seed(seed + n)
    count = 4 * n if count is None else count
    return torch.randint(max(n, 1), (2, count if n else 0), generator=generator)


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
    clouds = [cloud(n) for n in SIZES]
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


# In PyG data.


def cloud(n, channels=2, sparse=False):
    edge_index = edges_of(n)
    edge_attr = random_pos(edge_index.size(1), channels, seed=n)
    if sparse:  # no edges
        edge_index, edge_attr = edge_index[:, :0], edge_attr[:0]
    return Data(pos=random_pos(n, seed=n), edge_index=edge_index, edge_attr=edge_attr)


def assert_same(a, b):
    (x, spec), (y, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    assert spec == other
    for s, t in zip(x, y, strict=True):
        assert s is t is None or (s.dtype == t.dtype and torch.equal(s, t))


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
    clouds = [cloud(n, sparse=n == 2) for n in SIZES]
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
    clouds = [transform(cloud(n)) for n in SIZES]
    for batch in DataLoader(clouds, batch_size=2):
        tree = Tree.from_data(batch)
        again = replace_edges(tree).with_edges(batch.edge_index, batch.edge_attr)
        assert_same(tree, again)


def replace_edges(tree, edges=(), means=()):
    return dataclasses.replace(tree, edges=edges, edge_means=means)


def test_features_that_are_no_means_are_left_out():
    data = cloud(20)
    data.edge_attr = torch.randint(3, (80,))
    data = BallTree(4, [2], edges=True)(data)
    assert "tree_edge_1" in data
    assert "tree_edge_attr_1" not in data


def test_a_tree_without_edges_replaces_one_that_has_them():
    data = BallTree(4, [2], edges=True)(cloud(20))
    assert not any("tree_edge" in name for name in BallTree(4, [2])(data).to_dict())


def test_what_cannot_have_edges_is_refused():
    transform = BallTree(4, [2], edges=True)
    with pytest.raises(ValueError, match=r"'data\.edge_index' is missing; apply"):
        transform(Data(pos=random_pos(9)))
    hetero = HeteroData()
    hetero["atom"].pos = random_pos(9)
    with pytest.raises(TypeError, match="'edges=True' is for Data and batches of it"):
        transform(hetero)
    batch = Batch.from_data_list([cloud(9), cloud(9)])
    batch.edge_index[:, 0] = torch.tensor([0, 17])
    with pytest.raises(ValueError, match="an edge between two clouds"):
        transform(batch)
    batch = transform(Batch.from_data_list([cloud(9), cloud(9)]))
    with pytest.raises(ValueError, match="a tree with edges cannot be padded"):
        pad_batch(batch, 30, 3, num_edges=90)


def test_tables_that_were_changed_are_refused():
    def data():
        return BallTree(4, [2, 2], edges=True)(cloud(20))

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
        batch = Batch.from_data_list([transform(cloud(n)) for n in sizes])
        with no_recompilation(step):
            torch.testing.assert_close(compiled(batch), sums(batch))


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
    clouds = [transform(cloud(n)) for n in (9, 30, 2)]
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
    data = BallTree(4, [2, 2], edges=True)(cloud(40))
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
    data = cloud(n)
    data.edge_index, data.edge_attr = data.edge_index[:, :0], data.edge_attr[:0]
    data = BallTree(4, [2], edges=True)(data)
    Tree.from_data(data).levels(data.pos, data.edge_index, data.edge_attr)
    if n > 0:
        data.edge_index = torch.zeros(2, 1, dtype=torch.int64)
        with pytest.raises(ValueError, match="the 1 edges of cloud 0 are not the 0"):
            Tree.from_data(data)


def test_texts_have_sizes_and_no_tensors():
    data = BallTree(4, [2], edges=True)(cloud(9))
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
