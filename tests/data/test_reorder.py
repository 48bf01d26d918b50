"""Sorted data is the same data, with other node numbers."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_add_pool
from torch_geometric.utils import to_dense_adj

from torch_geometric_erwin import Tree, to_original
from torch_geometric_erwin.nn import BallAttention, Erwin
from torch_geometric_erwin.transforms import BallTree, TreeKNNGraph

SIZES = [9, 0, 1, 20, 8]
SORT = BallTree(8, [2], reorder=True)


def cloud(n, edges=12, dim=2):
    """A cloud with attributes of every kind; nodes are known by their `number`."""
    generator = torch.Generator().manual_seed(n)
    edge_index = torch.randint(max(n, 1), (2, edges if n else 0), generator=generator)
    return Data(
        pos=torch.randn(n, dim, generator=generator),
        x=torch.randn(n, 3, generator=generator),
        number=torch.arange(n),
        edge_index=edge_index,
        edge_attr=torch.arange(edge_index.size(1)).float(),
        face=torch.randint(max(n, 1), (3, 5 if n else 0), generator=generator),
        train_mask=torch.arange(n) % 2 == 0,
        y=torch.randn(1, 4, generator=generator),
        root_index=torch.tensor([n - 1]),
        array=np.arange(n),
        knowledge=torch.arange(n) * 10,  # its name contains "edge"
        parts={"number": torch.arange(n), "of_cloud": torch.rand(1, 2)},
        names=[f"node {i}" for i in range(n)],
        title=f"cloud {n}",
    )


def batch_of(sizes=SIZES, **kwargs):
    return Batch.from_data_list([cloud(n, **kwargs) for n in sizes if n])


def whole(data):
    """A batch, or one cloud, with a node's number counted in all clouds."""
    ptr = data.ptr if isinstance(data, Batch) else torch.tensor([0, data.num_nodes])
    start = ptr[:-1].repeat_interleave(ptr.diff())
    return start + data.number


def assert_sorted(after, before):
    """Every entry is the one of its node, and every number names the same node."""
    old = whole(after)
    for name in ("pos", "x", "number", "train_mask"):
        assert torch.equal(after[name], before[name][old]), name
    for name in ("edge_index", "face", "root_index"):
        assert torch.equal(old[after[name]], before[name]), name
    for name in ("edge_attr", "y"):
        assert torch.equal(after[name], before[name]), name
    if after.num_nodes != after.num_edges:  # otherwise PyG takes it for one of edges
        assert torch.equal(after.knowledge, before.knowledge[old])
    assert torch.equal(after.parts["number"], before.parts["number"][old])
    assert torch.equal(after.parts["of_cloud"], before.parts["of_cloud"])
    assert after.title == before.title


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 40])
def test_a_cloud(n):
    before = cloud(n)
    after = SORT(before)
    assert_sorted(after, before)
    order = after.number.tolist()
    assert after.names == [f"node {i}" for i in order]
    assert after.array.tolist() == order
    assert after.original_node.tolist() == order
    assert after.perm.tolist() == [*range(n)]
    assert order == BallTree(8, [2])(before).perm.tolist()
    assert torch.equal(to_original(after.x, after), before.x)


def test_an_empty_cloud():
    after = SORT(Data(pos=torch.zeros(0, 2), edge_index=torch.zeros(2, 0).long()))
    assert after.original_node.shape == (0,)
    assert Tree.from_data(after).perm.shape == (0,)


def test_a_batch_equals_its_clouds():
    clouds = [cloud(n) for n in SIZES if n]
    after = SORT(Batch.from_data_list(clouds))
    assert_sorted(after, Batch.from_data_list(clouds))
    each = [SORT(c) for c in clouds]
    collated = Batch.from_data_list(each)
    for name in sorted(collated.keys()):
        a, b = after[name], collated[name]
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), name
        else:
            assert str(a) == str(b), name
    for a, b in zip(after.to_data_list(), each, strict=True):
        assert a.keys() == b.keys()
        for name in sorted(a.keys()):
            assert str(a[name]) == str(b[name]), name


def test_the_input_is_not_changed():
    before = batch_of()
    kept = copy.deepcopy(before)
    SORT(before)
    assert before.keys() == kept.keys()
    assert torch.equal(before.pos, kept.pos)
    assert torch.equal(before.edge_index, kept.edge_index)


def test_a_second_application_composes():
    before = batch_of()
    once = SORT(before)
    moved = copy.copy(once)
    moved.pos = -moved.pos.flip(1)
    twice = SORT(moved)
    assert_sorted(twice, copy.copy(before).update({"pos": -before.pos.flip(1)}))
    assert torch.equal(to_original(twice.number, twice), before.number)
    assert torch.equal(Tree.from_data(twice).perm, twice.perm)


def test_another_tree_of_the_data_is_refused_after_sorting():
    data = BallTree(4, prefix="first_")(cloud(40))
    data = SORT(data)
    Tree.from_data(data)
    with pytest.raises(ValueError, match="reordered or replaced"):
        Tree.from_data(data, prefix="first_")


@given(st.integers(1, 30), st.integers(0, 40), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_any_number_of_nodes_and_edges(n, edges, dim):
    """Also if there are as many edges as nodes, coordinates or clouds."""
    before = cloud(n, edges, dim)
    del before.array, before.names
    assert_sorted(SORT(before), before)
    pair = Batch.from_data_list([before, before])
    assert_sorted(SORT(pair), pair)


def test_a_label_of_the_clouds_is_told_from_one_of_the_nodes():
    """There are as many clouds as nodes: only the slices tell."""
    clouds = [
        Data(pos=torch.rand(n, 2), y=torch.rand(1), z=torch.rand(n)) for n in (2, 0)
    ]
    before = Batch.from_data_list(clouds)
    before.pos = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    after = SORT(before)
    assert after.original_node.tolist() == [1, 0]
    assert torch.equal(after.y, before.y)
    assert torch.equal(after.z, before.z.flip(0))


class Bonded(Data):
    """An attribute that names nodes by a rule of the user's, with -1 for none."""

    def __inc__(self, key, value, *args):
        return self.num_nodes if key == "bonds" else super().__inc__(key, value, *args)


def test_a_rule_of_the_users():
    bonds = torch.tensor([3, -1, 0, 0, 2, 5])
    before = Bonded(pos=torch.rand(6, 2), bonds=bonds, number=torch.arange(6))
    after = SORT(before)
    order = after.number
    named = torch.where(after.bonds < 0, -1, order[after.bonds])
    assert torch.equal(named, bonds[order])


class Pairs(Data):
    """As in PyG's tutorial on pairs of graphs: edges from nodes to other points."""

    def __inc__(self, key, value, *args):
        if key == "edge_index":
            return torch.tensor([[self.num_nodes], [self.points.size(0)]])
        return super().__inc__(key, value, *args)


def test_numbers_of_two_kinds_of_nodes_are_refused():
    pairs = Pairs(pos=torch.rand(9, 2), points=torch.rand(4, 2))
    pairs.edge_index = torch.tensor([[8, 7], [0, 3]])
    for data in (pairs, Batch.from_data_list([pairs, pairs])):
        with pytest.raises(
            ValueError, match=r"'edge_index' must number nodes of one kind"
        ):
            SORT(data)
        BallTree(8)(data)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_adjacency(layout):
    before = cloud(12)
    dense = torch.zeros(12, 12)
    dense[before.edge_index[1], before.edge_index[0]] = 1.0
    before.adj_t = dense.to_sparse(layout=layout)
    after = SORT(before)
    assert after.adj_t.layout == layout
    order = after.number
    assert torch.equal(after.adj_t.to_dense(), dense[order][:, order])


@pytest.mark.parametrize("clouds", [1, 3])
def test_a_dense_adjacency_is_refused(clouds):
    data = cloud(12)
    data.adj = to_dense_adj(data.edge_index, max_num_nodes=12)[0]
    if clouds > 1:
        data = Batch.from_data_list([data] * clouds)
    with pytest.raises(ValueError, match=r"'adj' of shape .* is a dense matrix"):
        SORT(data)
    assert torch.equal(BallTree(8)(data).adj, data.adj)
    data.adj = data.adj[:, :5]  # features with a name like it
    after = SORT(data)
    assert torch.equal(after.adj, data.adj[whole(after)])


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
@pytest.mark.parametrize("to", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_features(to):
    before = cloud(12)
    dense = before.x * (before.x > 0)
    before.x = getattr(dense, to)()
    after = SORT(before)
    assert after.x.layout == before.x.layout
    assert torch.equal(after.x.to_dense(), dense[after.number])


def test_lists_of_clouds_stay_if_there_are_as_many_nodes():
    names = ["three", "zero", "null"]
    clouds = [
        Data(pos=torch.rand(n, 2), name=name, tags=[name])
        for n, name in zip((3, 0, 0), names, strict=True)
    ]
    before = Batch.from_data_list(clouds)
    before.pos = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    after = SORT(before)
    assert after.name == names
    assert after.tags == [[name] for name in names]
    assert [data.name for data in after.to_data_list()] == names


def test_offsets_of_followed_attributes_stay():
    clouds = [Data(pos=torch.rand(n, 2), x=torch.rand(n, 1)) for n in (2, 1)]
    before = Batch.from_data_list(clouds, follow_batch=["x"])
    before.pos = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    after = SORT(before)
    assert after.original_node.tolist() == [1, 0, 0]
    assert after.x_ptr.tolist() == [0, 2, 3]
    assert after.x_batch.tolist() == [0, 0, 1]


def test_labels_of_pairs_stay_with_their_pairs():
    """As `RandomLinkSplit` makes them; here there are as many as nodes."""
    before = cloud(9)
    before.edge_label_index = torch.randint(9, (2, 9))
    before.edge_label = torch.arange(9)
    after = SORT(before)
    assert torch.equal(after.edge_label, before.edge_label)
    named = after.number[after.edge_label_index]
    assert torch.equal(named, before.edge_label_index)


@pytest.mark.parametrize("name", ["adj", "adj_t"])
def test_a_sparse_adjacency_between_two_types(name):
    before = hetero(12, 12)
    dense = torch.zeros(12, 12)
    source, target = before["atom", "to", "site"].edge_index
    dense[source, target] = 1.0
    matrix = dense if name == "adj" else dense.t()
    before["atom", "to", "site"][name] = matrix.to_sparse_coo()
    after = BallTree(8, reorder=True)(before)
    moved = after["atom", "to", "site"][name].to_dense()
    moved = moved if name == "adj" else moved.t()
    rows, columns = after["atom"].number, after["site"].number
    assert torch.equal(moved, dense[rows][:, columns])


def test_attributes_of_data_without_nodes():
    after = SORT(Data(pos=torch.zeros(0, 2), y=torch.tensor([3])))
    assert after.y.tolist() == [3]


def test_numbers_of_nodes_that_are_not_there():
    before = cloud(9)
    before.face = torch.tensor([[0], [36], [1]])
    with pytest.raises(ValueError, match="'face' names node 36 of only 9 nodes"):
        SORT(before)
    del before.face
    before.material_index = torch.tensor([9])
    with pytest.raises(ValueError, match="'material_index' names node 9"):
        SORT(before)


def test_an_edge_index_with_metadata():
    before = cloud(12)
    plain = before.edge_index
    row = torch.sort(plain[0], stable=True).values
    before.edge_index = EdgeIndex(
        torch.stack([row, plain[1]]), sort_order="row", sparse_size=(12, 12)
    )
    after = SORT(before)
    assert isinstance(after.edge_index, EdgeIndex)
    assert after.edge_index.sort_order is None
    after.edge_index.validate()
    found = after.number[after.edge_index.as_tensor()]
    assert torch.equal(found, before.edge_index.as_tensor())


def hetero(n=30, m=11):
    data = HeteroData()
    generator = torch.Generator().manual_seed(n)
    for name, count in (("atom", n), ("site", m)):
        data[name].pos = torch.randn(count, 3, generator=generator)
        data[name].number = torch.arange(count)
    data["tag"].x = torch.arange(7.0)
    for a, b in (("atom", "site"), ("site", "tag"), ("atom", "atom")):
        sizes = data[a].num_nodes, data[b].num_nodes
        ends = [torch.randint(s, (40,), generator=generator) for s in sizes]
        data[a, "to", b].edge_index = torch.stack(ends)
    return data


def test_types_of_nodes():
    before = hetero()
    after = BallTree(8, reorder=True)(before)
    number = {k: after[k].get("number") for k in after.node_types}
    number["tag"] = torch.arange(7)
    for kind in before.edge_types:
        old, new = before[kind].edge_index, after[kind].edge_index
        assert torch.equal(number[kind[0]][new[0]], old[0])
        assert torch.equal(number[kind[2]][new[1]], old[1])
    for kind in ("atom", "site"):
        assert torch.equal(before[kind].pos[number[kind]], after[kind].pos)
        assert torch.equal(after[kind].original_node.long(), number[kind])
        assert Tree.from_data(after[kind]).config == TreeKNN
    pair = Batch.from_data_list([hetero(), hetero(17, 5)])
    each = [BallTree(8, reorder=True)(d) for d in (hetero(), hetero(17, 5))]
    sorted_pair, expected = BallTree(8, reorder=True)(pair), Batch.from_data_list(each)
    for kind in before.edge_types:
        a, b = sorted_pair[kind].edge_index, expected[kind].edge_index
        assert torch.equal(a, b)
    for a, b in zip(sorted_pair.to_data_list(), each, strict=True):
        assert torch.equal(a["atom"].original_node, b["atom"].original_node)


TreeKNN = BallTree(8).config


def test_layers_and_mixers_work_on_the_same_rows():
    torch.manual_seed(0)
    conv, ball = GCNConv(3, 8).double(), BallAttention(8, 2, 8, dim=2).double()
    before = TreeKNNGraph(3)(batch_of().apply(_doubled))
    after = BallTree(8, reorder=True)(before)
    (level,) = Tree.from_data(after).levels(after.pos)
    out = ball(conv(after.x, after.edge_index), level)
    tree = Tree.from_data(BallTree(8)(before))
    rows = tree.to_rows(conv(before.x, before.edge_index))
    expected = tree.to_nodes(ball(rows, tree.levels(before.pos)[0]))
    torch.testing.assert_close(to_original(out, after), expected, rtol=0, atol=1e-12)
    pooled = global_add_pool(out, after.batch)
    torch.testing.assert_close(pooled, global_add_pool(expected, before.batch))


def test_a_model_gives_the_same_for_sorted_data():
    torch.manual_seed(0)
    model = Erwin(3, [8, 8], 2, ball_sizes=8, dim=2, mp_steps=1).double().eval()
    before = batch_of().apply(_doubled)
    expected = model(before)
    c = model.tree_config
    after = BallTree(c.ball_sizes, c.strides, reorder=True)(before)
    out = to_original(model(after), after)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def _doubled(t):
    return t.double() if t.dtype == torch.float32 else t


def test_the_way_back_has_a_gradient():
    after = SORT(batch_of())
    x = after.x.clone().requires_grad_()
    weight = torch.rand_like(x)
    (to_original(x, after) * weight).sum().backward()
    back = torch.empty_like(weight)
    back[whole(after)] = weight  # what was multiplied with each node
    assert torch.equal(x.grad, weight[whole(after)])


def test_loaders_and_copies():
    loader = DataLoader([SORT(cloud(n)) for n in (9, 20)], batch_size=2)
    batch = next(iter(loader))
    expected = SORT(batch_of([9, 20]))
    for data in (batch, copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(data.edge_index, expected.edge_index)
        assert torch.equal(to_original(data.number, data), batch_of([9, 20]).number)


def test_what_is_refused():
    with pytest.raises(ValueError, match="'reorder' needs layout='balanced'"):
        BallTree(8, layout="perfect", reorder=True)
    with pytest.raises(ValueError, match="its nodes were not sorted"):
        to_original(torch.rand(9), cloud(9))
    for wrong in (
        torch.zeros(9, 1).long(),
        torch.rand(9),
        torch.arange(8),
        [*range(9)],
    ):
        data = cloud(9)
        data.original_node = wrong
        with pytest.raises(ValueError, match="'original_node' must"):
            SORT(data)
    after = SORT(cloud(20))
    part = Data(pos=after.pos, original_node=after.original_node)
    part = part.subgraph(torch.arange(10))
    with pytest.raises(ValueError, match="added, removed"):
        to_original(part.pos, part)
    with pytest.raises(ValueError, match="'x' must have"):
        to_original(torch.rand(19), after)
