import pytest
import torch
from clouds import cloud, randomised
from oracles import erwin as plain
from torch_geometric.nn import MessagePassing

from torch_geometric_erwin.nn import MPNNConv


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_equals_definition(n, dim):
    conv = randomised(MPNNConv(5, dim))
    data = cloud(n, channels=5, dim=dim)
    edges = data.edge_index.T.tolist()
    expected = plain.message_passing(
        conv.state_dict(), list(data.x), list(data.pos), edges
    )
    actual = conv(data.x, data.pos, data.edge_index)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_node_without_edges_gets_an_empty_message():
    conv = randomised(MPNNConv(5))
    data = cloud(4, channels=5)
    edge_index = torch.tensor([[0, 1], [1, 0]])
    expected = plain.message_passing(
        conv.state_dict(), list(data.x), list(data.pos), edge_index.T.tolist()
    )
    actual = conv(data.x, data.pos, edge_index)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [0, 3])
def test_no_edges(n):
    conv = randomised(MPNNConv(5))
    data = cloud(n, channels=5)
    out = conv(data.x, data.pos, torch.empty(2, 0, dtype=torch.int64))
    assert out.shape == (n, 5)
    assert torch.isfinite(out).all()


def test_flow():
    data = cloud(9, channels=5)
    forward, backward = MPNNConv(5), MPNNConv(5, flow="target_to_source")
    backward.load_state_dict(forward.state_dict())
    forward, backward = forward.double(), backward.double()
    torch.testing.assert_close(
        backward(data.x, data.pos, data.edge_index.flip(0)),
        forward(data.x, data.pos, data.edge_index),
    )


def test_depends_on_offsets_alone():
    conv = randomised(MPNNConv(5))
    data = cloud(9, channels=5)
    out = conv(data.x, data.pos, data.edge_index)
    moved = conv(data.x, data.pos + 1000, data.edge_index)
    # float64 positions at 1000 are rounded to 1e-13.
    torch.testing.assert_close(moved, out, rtol=0, atol=1e-11)


def test_gradients():
    conv = randomised(MPNNConv(5))
    data = cloud(9, channels=5)
    data.x.requires_grad_()
    data.pos.requires_grad_()
    out = conv(data.x, data.pos, data.edge_index)
    (out * torch.randn_like(out)).sum().backward()
    for tensor in (data.x, data.pos, *conv.parameters()):
        assert (tensor.grad.abs() > 1e-9).all()


def test_is_message_passing():
    assert isinstance(MPNNConv(5), MessagePassing)


def test_reset_parameters():
    conv = randomised(MPNNConv(64))
    conv.reset_parameters()
    for name, parameter in conv.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif name.startswith("norm"):
            assert (parameter == 1).all(), name
        else:
            assert 0.8 < parameter.std() * parameter.size(1) ** 0.5 < 0.96, name


def test_repr():
    assert repr(MPNNConv(5, dim=2)) == "MPNNConv(5, dim=2)"
