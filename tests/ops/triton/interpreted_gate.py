"""The gate in Triton's interpreter, which runs kernels on CPU tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import torch_geometric_erwin.ops.gate  # noqa: F401  (registers the operators)
from torch_geometric_erwin.ops.triton import gate

# Rounding of the result, of order one; the exponential is as exact as float32.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(0, 8), (1, 2), (3, 6), (7, 512), (130, 128), (9, 1000), (2, 3, 10)]
pytestmark = pytest.mark.usefixtures("fill")


def normal(*shape, seed=0, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kwargs)


def formula(x):
    opening, value = x.chunk(2, dim=-1)
    return F.silu(opening) * value


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_formula(shape, dtype):
    x, tolerance = normal(*shape).to(dtype), {"rtol": TOLERANCE[dtype], "atol": 4e-6}
    exact = x.double().requires_grad_()
    expected = formula(exact)
    out = gate.forward(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected.detach(), **tolerance)
    weight = normal(*expected.shape, seed=1).to(dtype)
    (expected,) = torch.autograd.grad(expected, exact, weight.double())
    grad = gate.backward(weight, x)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), expected, **tolerance)


def test_large_arguments():
    x = torch.tensor([[-88.0, 200.0, -60.0, 2.0, 2.0, 2.0]])
    assert gate.forward(x).tolist()[0] == pytest.approx([0.0, 400.0, 0.0], abs=1e-20)
    grad = gate.backward(torch.ones(1, 3), x)
    assert grad.tolist()[0] == pytest.approx([0, 2, 0, 0, 200, 0], abs=1e-20)


def test_strided_rows():
    x = normal(6, 20)[:, ::2]
    assert torch.equal(gate.forward(x), gate.forward(x.contiguous()))
    weight = torch.ones(()).expand(6, 5)
    expected = gate.backward(weight.contiguous(), x.contiguous())
    assert torch.equal(gate.backward(weight, x), expected)


def test_operator():
    """Served by the kernels on the CPU too."""
    library = torch.library.Library("erwin", "IMPL")
    for name, kernel in (("gate", gate.forward), ("gate_backward", gate.backward)):
        library.impl(name, kernel, "CPU")
    x = normal(3, 8, dtype=torch.float64, requires_grad=True)
    # The kernels round to float32.
    options = {"eps": 1e-3, "atol": 1e-3}
    assert gradcheck(torch.ops.erwin.gate, (x,), **options)
    assert gradgradcheck(torch.ops.erwin.gate, (x,), **options)
    torch.library.opcheck(torch.ops.erwin.gate.default, (normal(3, 8),))
    library._destroy()
