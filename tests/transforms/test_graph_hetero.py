import copy

import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader

from torch_geometric_erwin import knn, knn_graph, radius, radius_graph
from torch_geometric_erwin.transforms import TreeKNNGraph, TreeRadiusGraph

ATOMS, POINTS = [20, 3, 0, 1, 40, 6], [7, 5, 4, 0, 30, 1]
NEAR = ("atom", "near", "grid")
BETWEEN = [
    TreeKNNGraph(4, edge_type=NEAR),
    TreeKNNGraph(4, flow="target_to_source", edge_type=NEAR),
    TreeRadiusGraph(0.8, edge_type=NEAR),
    TreeRadiusGraph(0.8, False, 3, "target_to_source", edge_type=NEAR),
]
AMONG = [
    TreeKNNGraph(4),
    TreeKNNGraph(4, force_undirected=True),
    TreeKNNGraph(3, loop=True, edge_type=("atom", "bond", "atom")),
    TreeRadiusGraph(0.8, flow="target_to_source"),
]
each_transform = pytest.mark.parametrize("transform", [*BETWEEN, *AMONG])


def sample(atoms, points):
    generator = torch.Generator().manual_seed(atoms + 100 * points)
    data = HeteroData()
    data["atom"].pos = torch.randn(atoms, 3, generator=generator)
    data["atom"].charge = torch.arange(atoms)
    data["grid"].pos = torch.randn(points, 3, generator=generator)
    data["molecule"].x = torch.rand(1, 4, generator=generator)  # no positions
    bonds = torch.stack([torch.arange(atoms), torch.arange(atoms)])
    data["atom", "bond", "atom"].edge_index = bonds
    data["atom", "bond", "atom"].edge_attr = torch.rand(atoms, 2, generator=generator)
    data["atom", "of", "molecule"].edge_index = bonds * torch.tensor([[1], [0]])
    return data


def samples():
    return [sample(*sizes) for sizes in zip(ATOMS, POINTS, strict=True)]


def test_every_type_with_positions_gets_edges():
    data = sample(30, 9)
    out = TreeKNNGraph(4)(data)
    for kind in ("atom", "grid"):
        edge_index = out[kind, "to", kind].edge_index
        assert torch.equal(edge_index, knn_graph(data[kind].pos, 4))
    assert len(out.edge_types) == len(data.edge_types) + 2
    assert out["atom", "bond", "atom"].edge_attr.size(0) == 30  # other edges stay
    assert out.validate()
    near = TreeRadiusGraph(0.8)(data)["grid", "to", "grid"].edge_index
    assert torch.equal(near, radius_graph(data["grid"].pos, 0.8))


def test_edges_between_two_types():
    data = sample(30, 9)
    atom, grid = data["atom"].pos, data["grid"].pos
    forward, backward, within, limited = [t(data)[NEAR].edge_index for t in BETWEEN]
    # Every node of the grid has its nearest atoms as sources.
    assert torch.equal(forward, knn(atom, grid, 4).flip(0))
    assert torch.equal(forward[1].bincount(), torch.full((9,), 4))
    # Every atom has its nearest nodes of the grid as targets.
    assert torch.equal(backward, knn(grid, atom, 4))
    assert torch.equal(backward[0].bincount(), torch.full((30,), 4))
    assert torch.equal(within, radius(atom, grid, 0.8).flip(0))
    assert torch.equal(limited, radius(grid, atom, 0.8, max_num_neighbors=3))
    assert len(data.edge_types) == 2  # the input is kept


def test_edges_of_a_type_that_is_there_are_replaced():
    data = sample(30, 9)
    out = TreeKNNGraph(3, edge_type=("atom", "bond", "atom"))(data)
    edge_index = out["atom", "bond", "atom"].edge_index
    assert torch.equal(edge_index, knn_graph(data["atom"].pos, 3))
    assert "edge_attr" not in out["atom", "bond", "atom"]
    assert "edge_attr" in data["atom", "bond", "atom"]
    assert out.edge_types == data.edge_types


def assert_equal(a, b):
    assert a.edge_types == b.edge_types
    for one, other in zip(a.stores, b.stores, strict=True):
        assert set(one.keys()) == set(other.keys())
        for name in one:
            assert torch.equal(one[name], other[name]), (one._key, name)


@each_transform
def test_a_batch_has_the_graphs_of_its_parts(transform):
    alone = [transform(data) for data in samples()]
    expected = Batch.from_data_list(alone)
    before = Batch.from_data_list(samples())
    batch = transform(before)
    for edge_type in expected.edge_types:
        actual = batch[edge_type].edge_index
        assert torch.equal(actual, expected[edge_type].edge_index), edge_type
    for part, data in zip(batch.to_data_list(), alone, strict=True):
        assert_equal(part, data)
    assert_equal(batch[4], alone[4])
    for part, data in zip(before.to_data_list(), samples(), strict=True):
        assert part.edge_types == data.edge_types
    # Again: edges of a batch are replaced.
    for part, data in zip(transform(batch).to_data_list(), alone, strict=True):
        assert_equal(part, data)


@each_transform
def test_a_loader_of_transformed_samples(transform):
    alone = [transform(data) for data in samples()]
    (batch,) = DataLoader(alone, batch_size=len(alone))
    for part, data in zip(transform(batch).to_data_list(), alone, strict=True):
        assert_equal(part, data)


@each_transform
def test_assignments_without_offsets(transform):
    batch = Batch.from_data_list(samples())
    plain = HeteroData()
    for kind in ("atom", "grid"):
        plain[kind].pos, plain[kind].batch = batch[kind].pos, batch[kind].batch
    expected, actual = transform(batch), transform(plain)
    for edge_type in actual.edge_types:
        assert torch.equal(actual[edge_type].edge_index, expected[edge_type].edge_index)


@each_transform
def test_repr_builds_the_transform_again(transform):
    again = eval(repr(transform))
    assert vars(again) == vars(transform) == vars(copy.copy(transform))
    assert repr(again) == repr(transform)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "'edge_type' must be three words", {"edge_type": "atom"}),
        (TypeError, "'edge_type' must be three words", {"edge_type": ("a", "b")}),
        (TypeError, "'edge_type' must be three words", {"edge_type": ("a", 1, "b")}),
        (ValueError, "'loop' needs edges", {"edge_type": NEAR, "loop": True}),
    ],
)
@pytest.mark.parametrize("transform", [TreeKNNGraph, TreeRadiusGraph])
def test_bad_arguments(transform, error, match, arguments):
    with pytest.raises(error, match=match):
        transform(1, **arguments)


def test_edges_between_two_types_have_no_reverse():
    with pytest.raises(ValueError, match="'force_undirected' needs edges among nodes"):
        TreeKNNGraph(4, force_undirected=True, edge_type=NEAR)


@pytest.mark.parametrize("transform", BETWEEN)
def test_bad_data(transform):
    name = type(transform).__name__
    with pytest.raises(TypeError, match="'edge_type' is for HeteroData"):
        transform(Data(pos=torch.rand(4, 3)))
    data = sample(4, 5)
    del data["grid"].pos
    with pytest.raises(ValueError, match=f"'{name}' needs .* 'pos' of 'grid' is miss"):
        transform(data)
    del data["grid"]
    with pytest.raises(ValueError, match=r"'edge_type' must be .*\(got 'grid'\)"):
        transform(data)
    data = sample(4, 5)
    data["grid"].pos = data["grid"].pos[:, :2]
    with pytest.raises(ValueError, match="the same number of coordinates"):
        transform(data)


@pytest.mark.parametrize("transform", AMONG[:1] + AMONG[3:])
def test_data_without_positions(transform):
    data = HeteroData()
    data["atom"].x = torch.rand(3, 3)
    with pytest.raises(ValueError, match=r"'pos' is missing .*got \['atom'\]"):
        transform(data)
