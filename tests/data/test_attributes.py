"""Sorting and padding agree on what attributes belong to, whatever lengths agree."""

import copy

import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex, Index
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader, RandomNodeLoader

from torch_geometric_erwin import pad_batch
from torch_geometric_erwin.data.attributes import Attribute, Attributes
from torch_geometric_erwin.transforms import BallTree

SORT = BallTree(2, reorder=True)
NODES, GRAPHS, EDGES = 50, 20, 70

# The numbers of nodes and edges of every cloud.
CLASHES = {
    "none": [(4, 7), (2, 3)],
    "one cloud": [(4, 7)],
    "one cloud, N = E": [(4, 4)],
    "N = E": [(3, 1), (1, 3)],
    "N = E in every cloud": [(3, 3), (2, 2)],
    "N = G": [(3, 5), (0, 0), (0, 0)],
    "N = G, one node each": [(1, 3), (1, 2)],
    "E = G": [(3, 2), (2, 0)],
    "E = G, one edge each": [(4, 1), (3, 1)],
    "N = E = G": [(1, 2), (2, 1), (0, 0)],
    "N = E = G, one of each": [(1, 1), (1, 1)],
    "no edges": [(4, 0), (1, 0)],
    "no nodes": [(0, 0), (0, 0)],
}
every_clash = pytest.mark.parametrize("clouds", CLASHES.values(), ids=[*CLASHES])

# What belongs to what. Some names mislead on purpose.
OWNERS = {
    **dict.fromkeys(["pos", "x", "mass", "knowledge", "parent_index"], "node"),
    **dict.fromkeys(["knn_index", "parts.of_node", "layers"], "node"),
    **dict.fromkeys(["edge_index", "edge_attr", "weight"], "edge"),
    **dict.fromkeys(["parts.edge_flow"], "edge"),
    **dict.fromkeys(["y", "energy", "number", "edge_budget", "root_index"], "graph"),
    **dict.fromkeys(["parts.of_cloud"], "graph"),
}
NAMING = ["edge_index", "parent_index", "knn_index", "root_index"]


def cloud(n, e, seed=0):
    generator = torch.Generator().manual_seed(100 * seed + 10 * n + e)

    def numbers(*shape):
        return torch.randint(max(n, 1), shape, generator=generator)

    def values(*shape):
        return torch.rand(*shape, generator=generator)

    return Data(
        pos=values(n, 2),
        x=values(n, 3),
        mass=values(n),
        knowledge=values(n),  # its name contains "edge"
        parent_index=numbers(n),
        knn_index=numbers(2, n),
        edge_index=numbers(2, e),
        edge_attr=values(e, 2),
        weight=values(e),
        y=values(1, 2),
        energy=values(1)[0],
        number=0.5 * n,
        edge_budget=values(1),
        root_index=numbers(1),
        parts={"of_node": values(n), "edge_flow": values(e), "of_cloud": values(1)},
        layers=[values(n, i) for i in range(6)],  # more than there are nodes
        title=f"{n} nodes",
        names=[f"node {i}" for i in range(n)],
    )


def items_of(clouds):
    items = [cloud(*sizes, i) for i, sizes in enumerate(clouds)]
    for data in items:
        if not all(n for n, _ in clouds):  # a cloud without nodes has no root
            del data.root_index
    return items


def batch_of(clouds):
    return Batch.from_data_list(items_of(clouds))


def leaves(data):
    """Every tensor that PyG collates, by its path."""
    found = {}
    for name, value in data.to_dict().items():
        if isinstance(value, dict):
            found.update({f"{name}.{key}": part for key, part in value.items()})
        elif isinstance(value, list) and name == "layers":
            found.update({f"{name}.{i}": part for i, part in enumerate(value)})
        elif isinstance(value, torch.Tensor):
            found[name] = value
    return found


def expected_owner(path, clouds):
    """The owner, or of owners with as many entries in every cloud the one by name."""
    counts = {
        "node": [n for n, _ in clouds],
        "graph": [1 for _ in clouds],
        "edge": [e for _, e in clouds],
    }
    name = path.split(".")[-1] if path.startswith("parts") else path.split(".")[0]
    true = OWNERS[path if path in OWNERS else path.split(".")[0]]
    same = [kind for kind, own in counts.items() if own == counts[true]]
    if "edge" in name and "edge" in same:
        return "edge"
    if name == "edge_index":
        return None
    return same[0]


def axis_of(path):
    return -1 if "index" in path else 0


@every_clash
def test_padding(clouds):
    batch = BallTree(2)(batch_of(clouds))
    out = pad_batch(batch, NODES, GRAPHS, EDGES)
    sizes = {"node": NODES, "graph": GRAPHS, "edge": EDGES}
    before, after = leaves(batch), leaves(out)
    for path in [path for path in before if path.split(".")[0] in set_of_names()]:
        kind, axis = expected_owner(path, clouds), axis_of(path)
        assert after[path].size(axis) == sizes[kind], path
        assert after[path].dtype == before[path].dtype
        old, new = after[path].split(
            [before[path].size(axis), sizes[kind] - before[path].size(axis)], axis
        )
        assert torch.equal(old, before[path]), path
        if path in NAMING:
            spread = torch.arange(new.size(-1)) % (NODES - batch.num_nodes)
            assert torch.equal(new, (batch.num_nodes + spread).expand_as(new)), path
        else:
            assert not new.any(), path
    assert out.title == batch.title
    assert out.names == batch.names


@every_clash
def test_sorting(clouds):
    """In a batch, and in each of its clouds alone."""
    assert_sorted(batch_of(clouds), clouds)
    for i, sizes in enumerate(clouds):
        assert_sorted(cloud(*sizes, i), [sizes])


def assert_sorted(data, clouds):
    # The oracle is the order that the node numbers, an attribute like others, have.
    count = data.num_nodes
    data.tag = torch.arange(count)
    if isinstance(data, Batch):
        data._slice_dict["tag"] = data._slice_dict["pos"]
        data._inc_dict["tag"] = torch.zeros(len(clouds))
    out = SORT(copy.copy(data))
    order = out.tag
    assert torch.equal(order.sort().values, torch.arange(count))
    place = torch.empty_like(order)
    place[order] = torch.arange(count)
    before, after = leaves(data), leaves(out)
    for path in [path for path in before if path.split(".")[0] in set_of_names()]:
        value = before[path]
        if path in NAMING and count > 0:
            value = place[value]
        if expected_owner(path, clouds) == "node" and value.dim() > 0:
            value = value.index_select(axis_of(path) % value.dim(), order)
        assert torch.equal(after[path], value), path
    if not isinstance(data, Batch):
        assert out.names == [data.names[i] for i in order.tolist()]
    assert out.title == data.title


def set_of_names():
    return {path.split(".")[0] for path in OWNERS}


@pytest.mark.parametrize("n, e", [(4, 7), (4, 4), (1, 1), (3, 1), (1, 3)])
@pytest.mark.parametrize("name", ["x", "weight", "edge_attr", "knowledge", "tags"])
def test_one_cloud_as_pyg_has_it(name, n, e):
    """A list belongs to nodes, in PyG, even if its name is that of edges."""
    values = {"tags": lambda size: [*"abcdefg"][:size]}
    for size in {n, e, 1, 9}:
        value = values.get(name, torch.rand)(size)
        data = Data(
            pos=torch.rand(n, 2), edge_index=torch.zeros(2, e).long(), **{name: value}
        )
        if size != {"x": n, "edge_attr": e}.get(name, size):
            continue  # PyG counts nodes and edges by them
        store = data.stores[0]
        own = Attributes(data, store).owner(Attribute((name,), value))
        assert own[1] == 0
        assert (own[0] == "node") == store.is_node_attr(name)
        if own[0] != "graph":  # PyG knows no attributes of clouds
            assert (own[0] == "edge") == store.is_edge_attr(name)


@pytest.mark.parametrize("collated", [False, True])
def test_knowledge_of_nodes_without_edges(collated):
    """PyG would take any name with "edge" for one of edges, and count them by it."""
    data = Data(pos=torch.rand(9, 2), knowledge=torch.arange(9))
    data = Batch.from_data_list([data]) if collated else data
    out = SORT(copy.copy(data))
    assert torch.equal(out.pos, data.pos[out.knowledge])
    assert len(pad_batch(BallTree(2)(data), 20, 3).knowledge) == 20


class Rules(Data):
    """Axes and numbers by rules of the user's."""

    def __cat_dim__(self, key, value, *args):
        axes = {"channels": 1, "table": None}
        return axes[key] if key in axes else super().__cat_dim__(key, value, *args)

    def __inc__(self, key, value, *args):
        if key == "bonds":
            return self.num_nodes
        if key == "flows":
            return self.num_edges
        return super().__inc__(key, value, *args)


def ruled(n, e):
    return Rules(
        **cloud(n, e).to_dict(),
        channels=torch.rand(3, n),
        table=torch.rand(2, 3),
        bonds=torch.arange(n).flip(0),
        flows=torch.arange(n) * max(e - 1, 0) // max(n, 1),
    )


@pytest.mark.parametrize("clouds", [[(4, 2), (2, 4)], [(3, 5), (0, 0), (0, 0)]])
def test_rules_of_the_users(clouds):
    batch = Batch.from_data_list([ruled(*sizes) for sizes in clouds])
    del batch.root_index
    out = SORT(copy.copy(batch))
    order = out.original_node + batch.ptr[out.batch]
    place = order.argsort()
    assert torch.equal(out.channels, batch.channels[:, order])
    assert torch.equal(out.table, batch.table)
    assert torch.equal(out.bonds, place[batch.bonds][order])
    # As many edges as nodes: only what was added to each cloud tells them apart.
    assert torch.equal(out.flows, batch.flows[order])
    padded = pad_batch(BallTree(2)(batch), NODES, GRAPHS, EDGES)
    assert padded.channels.shape == (3, NODES)
    assert padded.table.shape == (GRAPHS, 2, 3)
    n = batch.num_nodes
    assert padded.bonds[n:].tolist() == [*range(n, NODES)]
    assert not padded.flows[n:].any()


@pytest.mark.parametrize("faces", [4, 6])
def test_faces_belong_to_nothing_else(faces):
    """There are as many as nodes, or as edges."""
    data = cloud(4, 6)
    data.face = torch.randint(4, (3, faces))
    data.tag = torch.arange(4)
    out = SORT(copy.copy(data))
    assert torch.equal(out.tag[out.face], data.face)
    with pytest.raises(ValueError, match=r"'face' of shape .* remove it before"):
        pad_batch(BallTree(2)(data), NODES, GRAPHS, EDGES)


@pytest.mark.parametrize("pairs", [4, 6])
@pytest.mark.parametrize("collated", [False, True])
def test_labels_of_pairs(pairs, collated):
    """There are as many pairs as nodes, or as edges."""
    data = cloud(4, 6)
    data.edge_label_index = torch.randint(4, (2, pairs))
    data.edge_label = torch.arange(pairs)
    data.tag = torch.arange(4)
    data = Batch.from_data_list([data]) if collated else data
    out = SORT(copy.copy(data))
    assert torch.equal(out.edge_label, data.edge_label)
    assert torch.equal(out.tag[out.edge_label_index], data.edge_label_index)
    tree = BallTree(2)(data)
    if pairs == 6:
        padded = pad_batch(tree, NODES, GRAPHS, EDGES)
        assert padded.edge_label_index.shape == (2, EDGES)
        assert padded.edge_label.shape == (EDGES,)
    else:
        with pytest.raises(ValueError, match="'edge_label_index' of shape"):
            pad_batch(tree, NODES, GRAPHS, EDGES)


SPARSE = {
    "adj_t": lambda n: torch.eye(n).to_sparse_coo(),
    "x": lambda n: torch.rand(n, 3).to_sparse_coo(),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_matrices(name):
    clouds = [cloud(n, 2) for n in (3, 5)]
    for data in clouds:
        data[name] = SPARSE[name](data.num_nodes)
    batch = Batch.from_data_list(clouds)
    dense = batch[name].to_dense()
    out = SORT(copy.copy(batch))
    order = out.original_node + torch.tensor([0, 3])[out.batch]
    expected = dense[order] if name == "x" else dense[order][:, order]
    assert torch.equal(out[name].to_dense(), expected)
    with pytest.raises(TypeError, match=f"'{name}' must be a dense tensor to be pad"):
        pad_batch(BallTree(2)(batch), NODES, GRAPHS, EDGES)


def test_what_belongs_to_nothing():
    batch = BallTree(2)(batch_of([(4, 7), (2, 3)]))
    for value in (torch.tensor(1.0), torch.rand(5), torch.rand(0, 3)):
        batch.other = value
        assert SORT(copy.copy(batch)).other is value
        with pytest.raises(ValueError, match=r"'other' of shape .* has an entry for"):
            pad_batch(batch, NODES, GRAPHS, EDGES)
    batch.other = {"part": torch.rand(5)}
    with pytest.raises(ValueError, match=r"'other\.part' of shape \[5\] has an entry"):
        pad_batch(batch, NODES, GRAPHS, EDGES)
    for value in ("text", 3, np.arange(5), ["a", "b"], {"a": "b"}):
        batch.other = value
        out = pad_batch(batch, NODES, GRAPHS, EDGES)
        assert str(out.other) == str(SORT(copy.copy(batch)).other) == str(value)


def test_entries_that_no_cloud_divides_like_nodes():
    """There are as many corners as nodes: two of every cloud."""
    clouds = [cloud(1, 2), cloud(3, 4)]
    for data in clouds:
        data.corner = torch.rand(2, 2)
    batch = Batch.from_data_list(clouds)
    assert torch.equal(SORT(copy.copy(batch)).corner, batch.corner)
    with pytest.raises(ValueError, match="'corner' of shape"):
        pad_batch(BallTree(2)(batch), NODES, GRAPHS, EDGES)


def test_records_that_no_longer_hold():
    """An attribute that was replaced, nodes that were dropped, records on a GPU."""
    batch = batch_of([(4, 7), (2, 3)])
    batch.y = torch.rand(6)  # of nodes now
    out = SORT(copy.copy(batch))
    order = out.original_node + torch.tensor([0, 4])[out.batch]
    assert torch.equal(out.y, batch.y[order])
    assert pad_batch(BallTree(2)(batch), NODES, GRAPHS, EDGES).y.shape == (NODES,)

    batch = batch_of([(4, 7), (2, 3)])
    del batch.names, batch.layers, batch.parts, batch.parent_index, batch.root_index
    del batch.knn_index
    batch = batch.subgraph(torch.tensor([0, 3]))  # as many nodes as clouds
    del batch.ptr
    out = pad_batch(BallTree(2)(batch), NODES, GRAPHS, EDGES)
    assert out.y.shape == (GRAPHS, 2)
    assert out.x.shape == (NODES, 3)

    batch = batch_of([(3, 1), (1, 3)])
    batch._slice_dict["edge_index"] = batch._slice_dict["edge_index"].to("meta")
    assert pad_batch(BallTree(2)(batch), NODES, GRAPHS, EDGES).x.shape == (NODES, 3)


@every_clash
@pytest.mark.parametrize("name", ["x", "edge_attr", "y", "parts"])
def test_clouds_of_followed_attributes(name, clouds):
    batch = Batch.from_data_list(items_of(clouds), follow_batch=[name])
    out = SORT(copy.copy(batch))
    padded = pad_batch(BallTree(2)(batch), NODES, GRAPHS, EDGES)
    paths = [f"parts.{key}" for key in batch.parts] if name == "parts" else [name]
    own, sorted_, after = leaves(batch), leaves(out), leaves(padded)
    counts = {"node": NODES, "edge": EDGES, "graph": GRAPHS}
    for path in paths:
        _, *rest = path.split(".")
        clouds_of, ptr = (".".join([name + end, *rest]) for end in ("_batch", "_ptr"))
        assert torch.equal(sorted_[clouds_of], own[clouds_of])
        assert torch.equal(sorted_[ptr], own[ptr])
        kind = expected_owner(path, clouds)
        assert torch.equal(after[ptr][: len(clouds) + 1], own[ptr])
        assert after[ptr].shape == (GRAPHS + 1,)
        assert after[ptr][-1] == counts[kind]
        sizes = after[ptr].diff()
        cloud_of = torch.arange(GRAPHS).repeat_interleave(sizes)
        assert torch.equal(after[clouds_of], cloud_of)


def test_numbers_with_metadata():
    """They are sorted no longer."""
    data = cloud(4, 0)
    data.edge_index = EdgeIndex(
        [[0, 1, 2], [1, 2, 3]], sort_order="row", sparse_size=(4, 4)
    )
    data.parent_index = Index([0, 0, 1, 2], dim_size=4, is_sorted=True)
    del data.edge_attr, data.weight, data.parts
    out = pad_batch(BallTree(2)(data), NODES, GRAPHS, EDGES)
    for value in (out.edge_index, out.parent_index):
        if isinstance(value, (EdgeIndex, Index)):
            value.validate()
    assert out.edge_index.shape == (2, EDGES)
    assert out.parent_index.tolist() == [0, 0, 1, 2, *range(4, NODES)]


@pytest.mark.parametrize("collated", [False, True])
def test_names_that_end_like_offsets(collated):
    """Of the clouds' own, and of those that PyG adds to a batch, without records."""
    data = Data(pos=torch.rand(5, 2), next_ptr=torch.arange(5))
    if collated:
        data = Batch.from_data_list([data, data])
        data.lost_ptr = torch.tensor([0, 7, 10])
    out = SORT(copy.copy(data))
    start = torch.tensor([0, 5])[out.batch] if collated else 0
    assert torch.equal(out.next_ptr, data.next_ptr[out.original_node + start])
    padded = BallTree(2)(data)
    if collated:
        assert torch.equal(out.lost_ptr, data.lost_ptr)
        with pytest.raises(ValueError, match="'lost_ptr' of shape"):
            pad_batch(padded, NODES, GRAPHS)
        del padded.lost_ptr
    assert pad_batch(padded, NODES, GRAPHS).next_ptr.shape == (NODES,)


def test_lists_that_grew_since_collation():
    batch = batch_of([(4, 7), (2, 3)])
    batch.layers = [*batch.layers, torch.rand(6)]
    out = SORT(copy.copy(batch))
    order = out.original_node + batch.ptr[out.batch]
    assert torch.equal(out.layers[-1], batch.layers[-1][order])


def test_an_index_that_is_not_a_number_of_nodes():
    data = cloud(4, 6)
    data.refraction_index = torch.rand(4)
    out = SORT(copy.copy(data))
    assert torch.equal(out.refraction_index, data.refraction_index[out.original_node])
    out = pad_batch(BallTree(2)(data), NODES, GRAPHS, EDGES)
    assert not out.refraction_index[4:].any()


def test_edges_between_two_types():
    """By the name, or a rule of the user's; in mappings too."""

    class Both(HeteroData):
        def __inc__(self, key, value, store=None, *args):
            if key == "pairs":
                return torch.tensor(store.size()).view(2, 1)
            return super().__inc__(key, value, store, *args)

    before = Both()
    for name, n in (("a", 6), ("b", 9)):
        before[name].pos = torch.rand(n, 2)
        before[name].number = torch.arange(n)
    edges = before["a", "to", "b"]
    ends = torch.stack([torch.randint(6, (5,)), torch.randint(9, (5,))])
    edges.edge_index, edges.pairs = ends, ends.flip(1)
    edges.parts = {"sub_index": ends, "edge_attr": torch.rand(5)}
    edges.edge_index_rate = torch.rand(2, 5)  # no numbers of nodes
    after = SORT(copy.copy(before))
    new, numbers = after["a", "to", "b"], [after[name].number for name in "ab"]
    for moved, kept in (
        (new.edge_index, ends),
        (new.pairs, ends.flip(1)),
        (new.parts["sub_index"], ends),
    ):
        assert torch.equal(
            torch.stack([n[m] for n, m in zip(numbers, moved, strict=True)]), kept
        )
    assert torch.equal(new.parts["edge_attr"], edges.parts["edge_attr"])
    assert torch.equal(new.edge_index_rate, edges.edge_index_rate)


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("name", ["layers", "tags"])
def test_lists(name, n):
    """One tensor per layer, of which there are two, or one entry per node."""
    value = [torch.rand(n), torch.rand(n)] if name == "layers" else [*"abcde"[:n]]
    before = Data(pos=torch.rand(n, 2), **{name: value})
    out = SORT(copy.copy(before))
    order = out.original_node
    if name == "layers" and n != 2:
        for a, b in zip(out.layers, value, strict=True):
            assert torch.equal(a, b[order])
    else:  # as PyG, which takes a list of this length for one of nodes
        assert all(a is value[i] for a, i in zip(out[name], order, strict=True))


def displaced(n, e, seed=0):
    """Every edge knows where its ends are."""
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand(n, 2, generator=generator)
    edge_index = torch.randint(max(n, 1), (2, e), generator=generator)
    return Data(pos=pos, edge_index=edge_index, edge_attr=between(pos, pos, edge_index))


def between(source, target, edge_index):
    return source[edge_index[0]] - target[edge_index[1]]


def batched(clouds):
    return next(iter(DataLoader(clouds, batch_size=len(clouds))))


def padded(clouds):
    return pad_batch(batched([BallTree(2)(data) for data in clouds]), 40, 6, 60)


FLOWS = {
    "sorted": lambda clouds: [SORT(data) for data in clouds],
    "collated": lambda clouds: [batched([SORT(data) for data in clouds])],
    "sorted in a batch": lambda clouds: [SORT(batched(clouds))],
    "sorted again": lambda clouds: [BallTree(3, reorder=True)(SORT(batched(clouds)))],
    "separated": lambda clouds: SORT(batched(clouds)).to_data_list(),
    "chosen": lambda clouds: [batched(SORT(batched(clouds))[[1, 0]])],
    "padded": lambda clouds: [padded(clouds)],
    "sorted, padded": lambda clouds: [padded([SORT(data) for data in clouds])],
    "a part": lambda clouds: [SORT(SORT(clouds[0]).subgraph(torch.arange(4)))],
    "parts": lambda clouds: [
        SORT(part) for part in RandomNodeLoader(SORT(clouds[0]), num_parts=2)
    ],
}


SIZES = [[(9, 20), (3, 7)], [(9, 9), (3, 3)], [(9, 3), (3, 9)]]


@pytest.mark.parametrize("sizes", SIZES, ids=["any", "N = E in every cloud", "N = E"])
@pytest.mark.parametrize("flow", FLOWS)
def test_features_stay_with_their_edges(flow, sizes):
    """Added edges have no features, and lie between nodes at the same place."""
    clouds = [displaced(*own, i) for i, own in enumerate(sizes)]
    for out in FLOWS[flow](clouds):
        assert torch.equal(out.edge_attr, between(out.pos, out.pos, out.edge_index))


def test_features_stay_with_edges_between_two_types():
    data = HeteroData()
    data["a"].pos, data["b"].pos = torch.rand(6, 2), torch.rand(9, 2)
    edges = data["a", "to", "b"]
    edges.edge_index = torch.stack([torch.randint(6, (9,)), torch.randint(9, (9,))])
    edges.edge_attr = between(data["a"].pos, data["b"].pos, edges.edge_index)
    for out in (
        SORT(data),
        batched([SORT(data), SORT(data)]),
        SORT(batched([data, data])),
    ):
        edges, ends = out["a", "to", "b"], (out["a"].pos, out["b"].pos)
        assert torch.equal(edges.edge_attr, between(*ends, edges.edge_index))
