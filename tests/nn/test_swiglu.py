import pytest
import torch
from clouds import randomised
from oracles import erwin as plain

from torch_geometric_erwin.nn import SwiGLU


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("channels, hidden", [(6, 24), (3, 2), (1, 1)])
def test_equals_definition(rows, channels, hidden):
    layer = randomised(SwiGLU(channels, hidden))
    x = torch.randn(rows, channels, dtype=torch.float64)
    out = layer(x)
    assert out.shape == x.shape
    for row, actual in zip(x, out):
        expected = plain.swiglu(layer.state_dict(), row)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_leading_dimensions():
    layer = SwiGLU(4, 8)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x)[1], layer(x[1]))


def test_every_parameter_gets_a_gradient():
    layer = randomised(SwiGLU(4, 8))
    layer(torch.randn(5, 4, dtype=torch.float64)).square().sum().backward()
    for parameter in layer.parameters():
        assert (parameter.grad != 0).all()


def test_reset_parameters():
    layer = randomised(SwiGLU(64, 256))
    layer.reset_parameters()
    for linear in (layer.lin_in, layer.lin_out):
        assert (linear.bias == 0).all()
        # A normal distribution, truncated at two standard deviations, has a standard
        # deviation of 0.88.
        assert 0.85 < linear.weight.std() * linear.in_features**0.5 < 0.91


class Low(torch.nn.Module):
    """An adapter around a linear map, with its weight."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.weight, self.bias = linear, linear.weight, linear.bias

    def forward(self, x):
        return 3 * self.linear(x)


def test_another_layer_in_the_place_of_a_map():
    layer, x = SwiGLU(4, 8), torch.rand(5, 4)
    half = SwiGLU(4, 8)
    half.load_state_dict(layer.state_dict())
    layer.lin_out = Low(layer.lin_out)
    torch.testing.assert_close(layer(x), 3 * half(x))
