import copy

import pytest
import torch
from clouds import cloud, ragged, randomised
from torch_geometric.data import Batch, Data, HeteroData

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
    assert torch.equal(
        model(data.x, data.pos, data.edge_index, batch=data.batch), expected
    )


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
        "'edge_index' is missing.*'TreeKNNGraph' or 'TreeRadiusGraph'.*'mp_steps=0'",
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


def test_data_and_its_tensors(model):
    message = "data was given, so 'pos' and 'edge_index' are its own"
    with pytest.raises(ValueError, match=message):
        model(DATA, DATA.pos)
    with pytest.raises(ValueError, match=message):
        model(DATA, edge_index=DATA.edge_index)


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
