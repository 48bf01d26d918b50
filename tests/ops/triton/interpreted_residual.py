"""Sums of rows in Triton's interpreter, which runs kernels on CPU tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.nn import RMSNorm

import torch_geometric_erwin.ops.residual as ops
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.residual import add_linear, add_norm
from torch_geometric_erwin.ops.triton import residual

# Rounding of results of order one.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(0, 8), (1, 1), (5, 3), (1, 512), (130, 32), (65, 48), (2100, 20), (7, 2048)]
EPS = torch.finfo(torch.float32).eps
pytestmark = pytest.mark.usefixtures("fill")


def normal(*shape, seed=0, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kwargs)


def assert_close(actual, expected, tolerance):
    """Up to a part of the largest value (of 1 if that is smaller)."""
    assert actual.shape == expected.shape
    allowed = tolerance * max([1, *expected.abs().flatten().tolist()])
    difference = (actual.double() - expected).abs()
    assert difference.numel() == 0 or difference.max().item() <= allowed


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_norm(shape, dtype):
    x, weight = normal(*shape), normal(shape[1], seed=1)
    y = normal(*shape, seed=2).to(dtype)
    total, out, scale = residual.add_norm(x, y, weight, EPS, dtype)
    exact = [t.double().requires_grad_() for t in (x + y, weight)]
    expected = F.rms_norm(exact[0], shape[1:], exact[1], EPS)
    assert torch.equal(total, x + y)
    assert out.dtype == dtype
    assert_close(out, expected.detach(), TOLERANCE[dtype])

    grad_total, grad = normal(*shape, seed=3), normal(*shape, seed=4).to(dtype)
    terms = exact[0] * 1, expected
    grads = torch.autograd.grad(terms, exact, (grad_total.double(), grad.double()))
    actual = residual.add_norm_backward(grad_total, grad, total, scale, weight)
    # A small row has a steep norm, and the weight's gradient is a sum over rows.
    assert_close(actual[0], grads[0], 4e-5)
    assert_close(actual[1], grads[1], 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_linear(shape, dim, dtype):
    x, y = normal(*shape), normal(shape[0], dim, seed=1)
    weight, bias = normal(shape[1], dim, seed=2), normal(shape[1], seed=3)
    out = residual.add_linear(x, y, weight, bias, dtype)
    assert out.dtype == dtype
    expected = x.double() + F.linear(y.double(), weight.double(), bias.double())
    assert_close(out, expected, TOLERANCE[dtype])


def test_strided_rows():
    x, weight = normal(6, 20), normal(10)
    for a, b in ((x[:, ::2], x[:, 1::2]), (x[:, :10], x[:, 10:])):
        out = residual.add_norm(a, b, weight, EPS, torch.float32)
        same = residual.add_norm(
            a.contiguous(), b.contiguous(), weight, EPS, torch.float32
        )
        assert all(torch.equal(s, t) for s, t in zip(out, same, strict=True))


@pytest.fixture
def operators():
    """Served by the kernels on the CPU too."""
    library = torch.library.Library("erwin", "IMPL")
    for name in ("add_norm", "add_norm_backward", "add_linear"):
        library.impl(name, getattr(residual, name), "CPU")
    yield torch.ops.erwin
    library._destroy()


# The kernels round to float32.
LOOSE = {"eps": 1e-2, "atol": 2e-2, "rtol": 1e-2}


@pytest.mark.filterwarnings("ignore:Input #:UserWarning")
def test_gradients_of_add_norm(operators):
    args = [normal(3, 4, seed=i) for i in range(2)] + [normal(4, seed=2)]
    for t in args:
        t.requires_grad_()

    def outputs(*args):
        return operators.add_norm(*args, 0.1, torch.float32)[:2]

    assert gradcheck(outputs, args, **LOOSE)
    # The second derivative, of which the first is a formula.
    exact = [t.detach().double().requires_grad_() for t in args]
    seconds = []
    for leaves in (args, exact):
        if leaves is args:
            total, out = outputs(*leaves)
        else:
            total = leaves[0] + leaves[1]
            out = F.rms_norm(total, (4,), leaves[2], 0.1)
        loss = (total.sin() + out.cos()).sum()
        firsts = torch.autograd.grad(loss, leaves, create_graph=True)
        loss = sum(first.square().sum() for first in firsts)
        seconds.append(torch.autograd.grad(loss, leaves))
    for actual, expected in zip(*seconds, strict=True):
        assert_close(actual, expected, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_add_linear(operators, dtype):
    shapes = ((30, 4), (30, 3), (4, 3), (4,))
    args = [normal(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    exact = [t.detach().double().requires_grad_() for t in args]
    weight = normal(30, 4, seed=9)
    out = operators.add_linear(*args, dtype)
    expected = exact[0] + F.linear(*exact[1:])
    grads = torch.autograd.grad(out, args, weight.to(dtype))
    wanted = torch.autograd.grad(expected, exact, weight.to(dtype).double())
    for leaf, actual, value in zip(args, grads, wanted, strict=True):
        assert actual.dtype == leaf.dtype
        assert_close(actual, value, 10 * TOLERANCE[dtype])


def test_operators(operators):
    x, weight = normal(6, 4, requires_grad=True), normal(4, requires_grad=True)
    y = normal(6, 4, seed=1, requires_grad=True)
    args = (x, y, weight, 0.1, torch.float32)
    torch.library.opcheck(operators.add_norm.default, args)
    args = (x, normal(6, 3), normal(4, 3, requires_grad=True), weight, torch.float32)
    torch.library.opcheck(operators.add_linear.default, args)


@pytest.fixture
def calls(operators, monkeypatch):
    """The operators that layers call, which they take for those of a GPU."""
    names = []

    def recorded(name):
        function = getattr(ops, name)

        def call(*args):
            names.append(name)
            return function(*args)

        return call

    monkeypatch.setattr(ops, "serves", lambda *_: True)
    for name in ("add_norm", "add_linear"):
        monkeypatch.setattr(ops, name, recorded(name))
    return names


class DoubledNorm(RMSNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledLinear(Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_that_are_served(calls):
    x, y = normal(6, 4), normal(6, 4, seed=1)
    _, out = add_norm(x, y, RMSNorm(4))
    assert_close(out, F.rms_norm(x.double() + y.double(), (4,)).detach(), 1e-6)
    add_linear(x, normal(6, 3), Linear(3, 4))
    assert calls == ["add_norm", "add_linear"]


def hooked(module):
    module.register_forward_hook(lambda module, args, out: 2 * out)
    return module


def replaced(module):
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)
    return module


@pytest.mark.parametrize("change", [hooked, replaced])
def test_layers_with_a_hook_are_called(calls, change):
    x, y = normal(6, 4), normal(6, 4, seed=1)
    assert_close(add_norm(x, y, change(RMSNorm(4)))[1], 2 * RMSNorm(4)(x + y), 1e-6)
    linear, y = Linear(3, 4), normal(6, 3)
    expected = x + 2 * linear(y)
    assert_close(add_linear(x, y, change(linear)), expected, 1e-6)
    assert calls == []


def test_other_layers_are_called(calls):
    x, y = normal(6, 4), normal(6, 4, seed=1)
    expected = RMSNorm(4)(x + y)
    assert_close(add_norm(x, y, DoubledNorm(4))[1], 2 * expected, 1e-6)
    assert_close(
        add_norm(x, y, RMSNorm(4, elementwise_affine=False))[1], expected, 1e-6
    )
    y = normal(6, 3)
    linear = DoubledLinear(3, 4)
    assert_close(add_linear(x, y, linear), x + linear(y), 1e-6)
    linear = Linear(3, 4, bias=False)
    assert_close(add_linear(x, y, linear), x + linear(y), 1e-6)
    assert calls == []


@pytest.mark.parametrize(
    "call",
    [
        lambda x: add_norm(x, x, RMSNorm(3)),
        lambda x: add_linear(x, x, Linear(3, 4)),
        lambda x: add_linear(x, x[:, :2], Linear(3, 4)),
        lambda x: add_linear(x, x[:, :3], Linear(3, 5)),
    ],
)
def test_shapes_that_do_not_fit_raise(calls, call):
    with pytest.raises(RuntimeError):
        call(normal(6, 4))
    assert calls == []


def test_only_one_output_is_used(operators):
    args = [normal(6, 4, seed=i).requires_grad_() for i in range(2)]
    args.append(normal(4, seed=2).requires_grad_())
    total, out, _ = operators.add_norm(*args, EPS, torch.float32)
    grads = torch.autograd.grad(total.sum(), args[:2], retain_graph=True)
    assert all((grad == 1).all() for grad in grads)
    exact = [t.detach().double().requires_grad_() for t in args]
    expected = F.rms_norm(exact[0] + exact[1], (4,), exact[2], EPS)
    grads = torch.autograd.grad(out.square().sum(), args)
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    for actual, value in zip(grads, wanted, strict=True):
        assert_close(actual, value, 1e-5)
