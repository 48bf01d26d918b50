import copy
import pickle

import pytest
import torch
from clouds import ragged, randomised
from oracles import erwin as plain
from torch_geometric.utils import to_undirected

from torch_geometric_erwin.nn import MPNN, MPNNEmbedding

DATA = ragged([13, 0, 1, 5])


def embedded(weights, rows, data, steps):
    """The rows after message passing, computed from the definition."""
    edges = data.edge_index.T.tolist()
    for step in range(steps):
        conv = plain.part(weights, f"convs.{step}")
        rows = plain.message_passing(conv, rows, list(data.pos), edges)
    return rows


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_embedding_equals_definition(steps):
    embed = randomised(MPNNEmbedding(2, 8, steps))
    weights = embed.state_dict()
    rows = [plain.linear(plain.part(weights, "start"), row) for row in DATA.x]
    expected = torch.stack(embedded(weights, rows, DATA, steps))
    actual = embed(DATA.x, DATA.pos, DATA.edge_index)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_embedding_without_features_starts_from_one_vector():
    embed = randomised(MPNNEmbedding(0, 8, 2))
    weights = embed.state_dict()
    rows = [weights["constant"]] * DATA.num_nodes
    expected = torch.stack(embedded(weights, rows, DATA, 2))
    actual = embed(None, DATA.pos, DATA.edge_index)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_equals_definition():
    model = randomised(MPNN(2, 8, 3, num_layers=2))
    weights = model.state_dict()
    rows = [plain.linear(plain.part(weights, "embed.start"), row) for row in DATA.x]
    rows = embedded(plain.part(weights, "embed"), rows, DATA, 2)
    rows = [plain.gelu(plain.linear(plain.part(weights, "head.0"), r)) for r in rows]
    rows = [plain.linear(plain.part(weights, "head.2"), row) for row in rows]
    torch.testing.assert_close(model(DATA), torch.stack(rows), rtol=1e-12, atol=1e-12)


def test_every_parameter_gets_a_gradient():
    model = randomised(MPNN(2, 8, 3, num_layers=2))
    out = model(DATA)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad != 0).all(), name


def test_cloud_alone_equals_cloud_in_batch():
    model = randomised(MPNN(2, 8, 3, num_layers=2))
    alone = torch.cat([model(data) for data in DATA.to_data_list()])
    torch.testing.assert_close(model(DATA), alone, rtol=1e-12, atol=1e-12)


def test_no_nodes():
    out = MPNN(2, 8, 3, num_layers=2).double()(ragged([0, 0]))
    assert out.shape == (0, 3)


def test_direction_of_edges_matters():
    model = randomised(MPNN(2, 8, 3, num_layers=1))
    data = ragged([13])
    out = model(data.x, data.pos, data.edge_index)
    assert not torch.allclose(out, model(data.x, data.pos, data.edge_index.flip(0)))
    both = to_undirected(data.edge_index)
    torch.testing.assert_close(
        model(data.x, data.pos, both), model(data.x, data.pos, both.flip(0))
    )


@pytest.mark.parametrize(
    "roundtrip", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_roundtrip(roundtrip):
    model = randomised(MPNN(2, 8, 3, num_layers=1))
    assert torch.equal(roundtrip(model)(DATA), model(DATA))


@pytest.mark.parametrize("in_channels", [0, 2])
def test_reset_parameters(in_channels):
    torch.manual_seed(0)
    fresh = MPNN(in_channels, 32, 3, num_layers=1)
    model = randomised(copy.deepcopy(fresh))
    model.reset_parameters()
    for name, expected in fresh.state_dict().items():
        actual = model.get_parameter(name)
        if (expected == expected.view(-1)[0]).all():
            assert torch.equal(actual, expected.double()), name
        else:
            assert not torch.equal(actual, expected.double()), name
            assert actual.abs().max() < 2 * expected.abs().max(), name


def test_repr():
    model = MPNN(2, 8, 3, num_layers=4)
    assert repr(model) == "MPNN(2, 8, 3, num_layers=4)"


VALID = {"in_channels": 2, "hidden_channels": 8, "out_channels": 3, "num_layers": 2}


@pytest.mark.parametrize("name", [*VALID, "dim"])
def test_bad_argument(name):
    minimum = 0 if name == "in_channels" else 1
    message = rf"'{name}' must be at least {minimum} \(got {minimum - 1}\)"
    with pytest.raises(ValueError, match=message):
        MPNN(**{**VALID, name: minimum - 1})
    with pytest.raises(TypeError, match=f"'{name}' must be an integer"):
        MPNN(**{**VALID, name: 2.0})
