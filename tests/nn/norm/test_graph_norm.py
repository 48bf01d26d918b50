from itertools import pairwise

import pytest
import torch
from torch_geometric.nn import GraphNorm as PyGGraphNorm
from torch_geometric.nn import InstanceNorm

from torch_geometric_erwin import Level
from torch_geometric_erwin.nn import GraphNorm
from torch_geometric_erwin.nn.norm import make_norm, normalise

SIZES = [5, 0, 2, 30]


def inputs(sizes=SIZES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64) + 3.0
    return x.to(dtype), torch.tensor([0, *torch.tensor(sizes).cumsum(0)])


def randomised(norm):
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double()
    return norm.double()


def test_equals_that_of_pyg():
    norm, x_ptr = randomised(GraphNorm(4)), inputs()
    other = PyGGraphNorm(4).double()
    other.load_state_dict(norm.state_dict())
    x, ptr = x_ptr
    batch = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    expected = other(x, batch, len(SIZES))
    torch.testing.assert_close(norm(x, ptr), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.eval()(x, ptr), expected, rtol=0, atol=1e-12)


def test_one_cloud_without_offsets():
    norm, (x, _) = randomised(GraphNorm(4)), inputs()
    torch.testing.assert_close(norm(x), norm(x, torch.tensor([0, len(x)])))


def test_a_cloud_never_depends_on_others():
    norm, (x, ptr) = randomised(GraphNorm(4)), inputs()
    out = norm(x, ptr)
    for first, last in pairwise(ptr):
        own = x[first:last]
        torch.testing.assert_close(norm(own), out[first:last], rtol=0, atol=1e-12)


def test_one_row_keeps_its_information():
    norm = GraphNorm(4).double()
    x, ptr = inputs([1, 1, 1])
    out = norm(x, ptr)
    scale = (x.square().mean(1, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(out, x / scale, rtol=0, atol=1e-12)
    assert out.abs().min() > 1e-3


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [1], [3, 1, 0, 2]])
def test_gradients(sizes):
    norm, (x, ptr) = randomised(GraphNorm(4)), inputs(sizes)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: norm(x, ptr), (x,))
    assert torch.autograd.gradgradcheck(lambda x: norm(x, ptr), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_in_float32(dtype):
    norm = GraphNorm(4).to(dtype)
    x, ptr = inputs(dtype=dtype)
    out = norm(x, ptr)
    assert out.dtype == dtype
    expected = GraphNorm(4)(x.float(), ptr)
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)


def test_bad_rows():
    with pytest.raises(ValueError, match=r"'x' must have shape \[5, 4\] \(got \[5, 3"):
        GraphNorm(4)(torch.rand(5, 3))
    with pytest.raises(ValueError, match="'num_features' must be at least 1"):
        GraphNorm(0)


def test_a_norm_of_pyg_gets_the_clouds():
    x, ptr = inputs()
    level = Level.build(torch.zeros(37, 2), torch.tensor(SIZES), ball_size=64, ptr=ptr)
    norm = make_norm(InstanceNorm, 4)
    batch = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    expected = InstanceNorm(4)(x, batch)
    torch.testing.assert_close(normalise(norm, x, level), expected)
    assert not torch.allclose(InstanceNorm(4)(x), expected)


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        ("group", ValueError, r"'norm' must be one of \['batch', .* \(got 'group'\)"),
        (GraphNorm(4), TypeError, "one for every place"),
        (3, TypeError, r"'norm' must be a name or a callable .* \(got 3\)"),
    ],
)
def test_bad_norms(norm, error, message):
    with pytest.raises(error, match=message):
        make_norm(norm, 4)
