import copy
import re

import pytest
import torch
from clouds import cloud, ragged, randomised
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn import Sequential, global_mean_pool
from torch_geometric.transforms import ToSparseTensor
from torch_geometric.utils import to_edge_index

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import MPNN, Erwin

MODELS = {
    "Erwin": lambda: Erwin(2, [8, 16], 3, ball_sizes=4, mp_steps=1),
    "MPNN": lambda: MPNN(2, 8, 3, num_layers=1),
}


@pytest.fixture(params=[*MODELS])
def model(request):
    return randomised(MODELS[request.param]()).eval()


def replaced(data, **kwargs):
    data = data.clone()
    for name, value in kwargs.items():
        data[name] = value
    return data


def without(data, *names):
    data = data.clone()
    for name in names:
        del data[name]
    return data


def test_data_equals_tensors(model):
    data = ragged([13, 1, 5])
    expected = model(data.x, data.pos, data.edge_index, ptr=data.ptr)
    assert torch.equal(model(data), expected)
    assert torch.equal(model(without(data, "ptr")), expected)
    args = (data.pos, data.edge_index, data.batch)
    assert torch.equal(model(data.x, *args), expected)
    named = dict(zip(("pos", "edge_index", "batch"), args))
    assert torch.equal(model(data.x, **named), expected)
    assert torch.equal(model(x=data.x, **named), expected)


def test_in_a_sequential_of_pyg(model):
    data = ragged([13, 1, 5])
    whole = Sequential(
        "x, pos, edge_index, batch",
        [
            (torch.nn.Linear(2, 2).double(), "x -> x"),
            (model, "x, pos, edge_index, batch -> x"),
            (global_mean_pool, "x, batch -> x"),
        ],
    )
    args = (data.pos, data.edge_index, data.batch)
    expected = model(whole[0](data.x), data.pos, data.edge_index, ptr=data.ptr)
    expected = torch.stack([e.mean(0) for e in expected.split([13, 1, 5])])
    torch.testing.assert_close(whole(data.x, *args), expected)


BESIDE = {
    "features": lambda data: {"x": data.x + 1},
    "positions": lambda data: {"pos": data.pos * 1.01},
    "edges": lambda data: {"edge_index": data.edge_index[:, :30].flip(0)},
    "two of them": lambda data: {"x": data.x + 1, "pos": data.pos * 1.01},
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=[*BESIDE])
@pytest.mark.parametrize("has_tree", [False, True], ids=["plain", "with a tree"])
def test_what_is_given_beside_data_replaces_its_own(model, beside, has_tree):
    data = ragged([13, 0, 5])
    if has_tree and isinstance(model, Erwin):
        data = model.tree_transform()(data)
    own = beside(data)
    expected = model(replaced(data, **own))
    assert torch.equal(model(data, **own), expected)
    assert not torch.allclose(model(data), expected)


def test_features_beside_data_without():
    model = randomised(Erwin(2, [8, 16], 3, ball_sizes=4, mp_steps=0)).eval()
    data = model.tree_transform()(ragged([13, 5]))
    for own in (without(data, "x"), without(data, "x", "edge_index")):
        assert torch.equal(model(own, x=data.x), model(data))


def test_the_tree_of_the_data_serves_positions_of_a_rollout():
    model = randomised(Erwin(2, [8, 16], 3, ball_sizes=4, mp_steps=0)).eval()
    data = model.tree_transform()(ragged([13, 5]))
    tree = Tree.from_data(data, model.tree_config)
    moved = -data.pos  # a tree of its own would be another one
    expected = model(data.x, moved, tree=tree)
    assert torch.equal(model(data, pos=moved), expected)
    assert not torch.allclose(model(data.x, moved, ptr=data.ptr), expected)


def test_positions_beside_data_without():
    model = randomised(Erwin(2, [8, 16], 3, ball_sizes=4, mp_steps=0)).eval()
    data = ragged([13, 5])
    assert torch.equal(model(without(data, "pos"), pos=data.pos), model(data))


def test_clouds_without_nodes_at_the_end_of_a_batch_with_a_tree():
    model = randomised(Erwin(2, [8, 16], 3, ball_sizes=4, mp_steps=0)).eval()
    data = model.tree_transform()(ragged([13, 5, 0, 0]))
    tree = Tree.from_data(data, model.tree_config)
    out = model(data.x, data.pos, None, data.batch, tree=tree)
    assert torch.equal(out, model(data))


def test_batch_with_empty_clouds_at_its_end(model):
    data = ragged([13, 0, 5, 0, 0])
    assert model(data).shape == (18, 3)
    assert torch.equal(model(data), model(without(data, "ptr")))


def test_given_offsets_come_before_those_of_the_data():
    model = randomised(Erwin(2, [8, 16], 3, ball_sizes=4, mp_steps=0)).eval()
    data = ragged([13, 5])
    out = model(without(data, "ptr", "batch"), ptr=data.ptr)
    assert torch.equal(out, model(data))
    one = torch.tensor([0, 18])
    assert torch.equal(model(data, ptr=one), model(data.x, data.pos))
    assert not torch.allclose(model(data, ptr=one), model(data))


def test_node_store_of_heterogeneous_data():
    model = randomised(Erwin(2, [8, 16], 3, ball_sizes=4, mp_steps=0)).eval()
    clouds = [cloud(13), cloud(5)]
    hetero = []
    for data in clouds:
        item = HeteroData()
        item["atom"].x, item["atom"].pos = data.x, data.pos
        item["bond"].x = torch.rand(3, 1)
        hetero.append(model.tree_transform()(item))
    batch = Batch.from_data_list(hetero)
    expected = model(Batch.from_data_list(clouds))
    assert torch.equal(model(batch["atom"]), expected)
    assert torch.equal(model(hetero[0]["atom"]), model(clouds[0]))


def test_strided_inputs(model):
    data = ragged([13, 1, 5])
    expected = model(data)
    x = data.x.T.contiguous().T
    pos = torch.cat([data.pos, data.pos], 1)[:, :3]
    edges = data.edge_index.T.contiguous().T
    assert not any(t.is_contiguous() for t in (x, pos, edges))
    torch.testing.assert_close(model(x, pos, edges, ptr=data.ptr), expected)


DATA = ragged([13, 1, 5])
NAN = replaced(DATA, pos=DATA.pos.clone())
NAN.pos[7, 1] = float("nan")
INFINITE = replaced(DATA, pos=DATA.pos.clone())
INFINITE.pos[15, 0] = float("inf")
EDGE = torch.tensor([[0, 1], [1, 19]])

BAD_DATA = {
    "no positions": (Data(x=DATA.x), "'pos' is missing"),
    "no features": (without(DATA, "x"), "'x' is missing, the model takes 2 features"),
    "no edges": (
        without(DATA, "edge_index"),
        "'edge_index' is missing.*'TreeKNNGraph' or 'TreeRadiusGraph'",
    ),
    "positions of one dimension": (
        replaced(DATA, pos=DATA.pos[:, 0]),
        r"'pos' must have shape \[N, D\] \(got \[19\]\)",
    ),
    "positions of other dimension": (
        replaced(DATA, pos=DATA.pos[:, :2]),
        r"'pos' must have 3 coordinates \(got 2\)",
    ),
    "NaN position": (NAN, r"'pos' must be finite \(row 7 is \[.*nan"),
    "infinite position": (INFINITE, r"'pos' must be finite \(row 15 is \[inf"),
    "features of other size": (
        replaced(DATA, x=DATA.x[:, :1]),
        r"'x' must have shape \[19, 2\] \(got \[19, 1\]\)",
    ),
    "features of one dimension": (
        replaced(DATA, x=DATA.x[:, 0]),
        r"'x' must have shape \[19, 2\] \(got \[19\]\)",
    ),
    "features of other nodes": (
        replaced(DATA, x=DATA.x[1:]),
        r"'x' must have shape \[19, 2\] \(got \[18, 2\]\)",
    ),
    "edge to a node that is none": (
        replaced(DATA, edge_index=EDGE),
        r"'edge_index' must name one of 19 nodes \(got 19\)",
    ),
    "edge from a negative node": (
        replaced(DATA, edge_index=-EDGE),
        r"'edge_index' must name one of 19 nodes \(got -19\)",
    ),
    "transposed edges": (
        replaced(DATA, edge_index=DATA.edge_index.T),
        r"'edge_index' must have shape \[2, E\] \(got \[57, 2\]\)",
    ),
    "offsets that do not start at 0": (
        replaced(DATA, ptr=torch.tensor([1, 14, 19])),
        r"'ptr' must start at 0 \(got 1\)",
    ),
    "offsets that descend": (
        replaced(DATA, ptr=torch.tensor([0, 14, 13, 19])),
        r"'ptr' must not descend \(entry 1 is 14, entry 2 is 13\)",
    ),
    "offsets that end early": (
        replaced(DATA, ptr=torch.tensor([0, 13, 18])),
        r"'ptr' must end at the number of rows 19 \(got 18\)",
    ),
    "unsorted clouds": (
        replaced(without(DATA, "ptr"), batch=DATA.batch.flip(0)),
        r"'batch' must be sorted \(entry 5 is 1 after 2\)",
    ),
    "negative cloud": (
        replaced(without(DATA, "ptr"), batch=DATA.batch - 1),
        r"'batch' must not be negative \(got -1\)",
    ),
    "clouds of other nodes": (
        replaced(without(DATA, "ptr"), batch=DATA.batch[1:]),
        r"\(got 18\)",
    ),
}


@pytest.mark.parametrize("data, message", BAD_DATA.values(), ids=[*BAD_DATA])
def test_bad_data(model, data, message):
    with pytest.raises(ValueError, match=message):
        model(data)


BAD_DTYPES = {
    "integer positions": (replaced(DATA, pos=DATA.pos.long()), "'pos'.*torch.int64"),
    "int32 edges": (replaced(DATA, edge_index=EDGE.int()), "'edge_index'.*torch.int32"),
    "int32 offsets": (replaced(DATA, ptr=DATA.ptr.int()), "'ptr'.*torch.int32"),
    "int32 clouds": (
        replaced(without(DATA, "ptr"), batch=DATA.batch.int()),
        "'batch'.*torch.int32",
    ),
}


@pytest.mark.parametrize("data, message", BAD_DTYPES.values(), ids=[*BAD_DTYPES])
def test_bad_dtype(model, data, message):
    with pytest.raises(TypeError, match=message):
        model(data)


def test_features_given_twice(model):
    with pytest.raises(ValueError, match="'x' is given twice"):
        model(DATA.x, DATA.pos, DATA.edge_index, x=DATA.x)


def test_positions_of_other_nodes_than_the_data(model):
    message = r"'pos' must have a row for each of the data's 19 nodes \(got \[18, 3\]"
    with pytest.raises(ValueError, match=message):
        model(DATA, pos=DATA.pos[1:])


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("with_ptr", [False, True])
def test_a_tree_of_other_nodes_is_to_blame(layout, with_ptr):
    model = Erwin(0, [8, 16], ball_sizes=4, mp_steps=0, layout=layout)
    tree = model.tree_transform()(Data(pos=torch.rand(50, 3)))
    tree = Tree.from_data(tree, model.tree_config)
    ptr = torch.tensor([0, 40]) if with_ptr else None
    with pytest.raises(ValueError, match="'tree' is of 50 nodes, 'pos' has 40"):
        model(pos=torch.rand(40, 3), tree=tree, ptr=ptr)


def test_models_name_what_they_can_do_without_edges():
    data = replaced(without(DATA, "edge_index"), x=DATA.x.float())
    with pytest.raises(ValueError, match="or set 'mp_steps=0'"):
        MODELS["Erwin"]()(data)
    with pytest.raises(ValueError, match=r"'TreeRadiusGraph'$"):
        MODELS["MPNN"]()(data)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*")
def test_adjacency_matrix_instead_of_edges(model, layout):
    data = ToSparseTensor(layout=layout)(cloud(13))
    data.adj_t = data.adj_t.double()
    with pytest.raises(ValueError, match="the data has 'adj_t' instead") as caught:
        model(data)
    # What the message advises gives the same result.
    advice = re.search(r"edge_index=(.*)'", str(caught.value))[1]
    edge_index = eval(advice, {"data": data, "to_edge_index": to_edge_index})
    edges = cloud(13).edge_index.unique(dim=1)
    torch.testing.assert_close(
        model(data, edge_index=edge_index), model(cloud(13), edge_index=edges)
    )


def test_edge_features_that_the_model_does_not_take(model):
    message = "no edge features, 'edge_dim=0': 'edge_attr' must be None"
    with pytest.raises(ValueError, match=message):
        model(DATA, edge_attr=torch.rand(57, 2))
    expected = model(DATA)
    assert torch.equal(model(replaced(DATA, edge_attr=torch.rand(57, 2))), expected)


def test_tensors_without_positions(model):
    with pytest.raises(ValueError, match="'pos' is missing"):
        model(DATA.x)


def test_tensors_with_unsorted_batch(model):
    with pytest.raises(ValueError, match="'batch' must be sorted"):
        model(DATA.x, DATA.pos, DATA.edge_index, batch=DATA.batch.flip(0))


def test_tensors_with_batch_of_other_size(model):
    with pytest.raises(ValueError, match=r"'batch' must have 19 entries \(got 18\)"):
        model(DATA.x, DATA.pos, DATA.edge_index, batch=DATA.batch[1:])


@pytest.mark.parametrize("make", [
    lambda: Erwin(0, [8, 16], ball_sizes=4, mp_steps=1),
    lambda: MPNN(0, 8, 3, num_layers=1),
], ids=[*MODELS])  # fmt: skip
def test_features_that_the_model_does_not_take(make):
    message = r"takes no features, 'in_channels=0' \(got 'x' of \[19, 2\]\)"
    with pytest.raises(ValueError, match=message):
        make()(DATA)


def test_edges_are_not_needed_without_message_passing():
    model = randomised(Erwin(2, [8, 16], 3, ball_sizes=4, mp_steps=0)).eval()
    data = without(DATA, "edge_index")
    assert torch.equal(model(data), model(DATA))


def test_heterogeneous_data_needs_a_type(model):
    data = HeteroData()
    data["atom"].pos = torch.rand(3, 3)
    with pytest.raises(TypeError, match=r"pass a node store, 'data\[node_type\]'"):
        model(data)


def test_edges_beside_a_node_store():
    model = Erwin(0, [16, 16], ball_sizes=4, mp_steps=1).eval()
    data, edge_index = HeteroData(), torch.tensor([[0, 1], [1, 2]])
    data["atom"].pos = torch.rand(3, 3)
    data["atom", "bond", "atom"].edge_index = edge_index
    out = model(data["atom"], edge_index=data["atom", "bond", "atom"].edge_index)
    assert torch.equal(out, model(None, data["atom"].pos, edge_index))


def test_offsets_and_batch_are_one_too_many(model):
    pos, zeros = torch.rand(3, 3), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="'ptr' and 'batch' say the same"):
        model(torch.rand(3, 2), pos, ptr=torch.tensor([0, 3]), batch=zeros)


@pytest.mark.parametrize("x", [[[1.0, 2.0]] * 3, torch.ones(3, 2, dtype=torch.long)])
def test_features_of_other_type(model, x):
    with pytest.raises(TypeError, match="'x' must be a floating-point tensor"):
        model(x, torch.rand(3, 3), torch.zeros(2, 0, dtype=torch.long))


def test_features_of_another_dtype_than_the_weights():
    model = Erwin(2, [8, 8], ball_sizes=8, mp_steps=0)
    x, pos = torch.rand(5, 2), torch.rand(5, 3)
    message = r"'x' is torch\.float64, the model's weights are torch\.float32: convert"
    with pytest.raises(TypeError, match=message):
        model(x.double(), pos)
    with pytest.raises(TypeError, match=r"weights are torch\.float64"):
        copy.deepcopy(model).double()(x, pos)
    assert model(x, pos.double()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x.bfloat16(), pos).isfinite().all()
