"""The kernels of rows on a GPU, behind the functions that choose them."""

import pytest
import torch
from torch.nn import RMSNorm

from torch_geometric_erwin.nn import ErwinBlock
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.residual import add_linear, add_norm
from torch_geometric_erwin.ops import triton
from torch_geometric_erwin.ops.centre import centre, centre_dense
from torch_geometric_erwin.ops.gate import silu_gate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def no_size_is_small(monkeypatch):
    monkeypatch.setattr(triton, "SMALL", 0)


LENGTHS = [128, 0, 1, 127, 128, 40]
EPS = torch.finfo(torch.float32).eps


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected, tolerance):
    """Up to a part of the largest value."""
    assert actual.shape == expected.shape
    difference = (actual.cpu().double() - expected).abs().max()
    assert difference <= tolerance * expected.abs().max()


def compare(function, modules, args, tolerance=32 * EPS):
    """Outputs, gradients and second derivatives of a GPU, and of float64 on the CPU."""
    results = []
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float64)):
        own = [
            module.to(device, dtype) if isinstance(module, torch.nn.Module) else module
            for module in modules
        ]
        leaves = [a.detach().to(device, dtype).requires_grad_() for a in args]
        weights = [w for m in own for w in m.parameters()]
        outputs = function(*leaves, *own)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(
            (out * normal(*out.shape, seed=i).to(out)).sum()
            for i, out in enumerate(outputs)
        )
        first = torch.autograd.grad(loss, leaves + weights, retain_graph=True)
        again = torch.autograd.grad(loss, leaves + weights, create_graph=True)
        loss = sum(grad.square().sum() for grad in again)
        second = ()
        if loss.requires_grad:  # the gradient of a linear map is constant
            second = torch.autograd.grad(loss, leaves + weights, allow_unused=True)
        results.append([*outputs, *first, *(g for g in second if g is not None)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual.detach(), expected.detach(), tolerance)


@pytest.mark.parametrize("channels", [32, 50, 512])
def test_add_norm(channels):
    norm = RMSNorm(channels, eps=0.1)
    torch.nn.init.normal_(norm.weight)
    rows = normal(300, channels), normal(300, channels, seed=1)
    compare(add_norm, [norm], rows, 1e-4)


@pytest.mark.parametrize("channels", [32, 50, 512])
def test_add_linear(channels):
    rows = normal(300, channels), normal(300, 3, seed=1)
    compare(add_linear, [Linear(3, channels)], rows, 1e-4)


@pytest.mark.parametrize("hidden", [1, 64, 1000])
def test_gate(hidden):
    compare(silu_gate, [], [normal(300, 2 * hidden)], 1e-5)


@pytest.mark.parametrize("permuted", [False, True])
def test_centre(permuted):
    rows = sum(LENGTHS)
    perm = torch.randperm(rows) if permuted else None

    def function(x):
        order = None if perm is None else perm.to(x.device)
        return centre(x, torch.tensor(LENGTHS, device=x.device), order, 128)

    compare(function, [], [normal(rows, 3)])


def test_centre_dense():
    def function(x):
        return centre_dense(x, torch.tensor(LENGTHS, device=x.device), 128)

    compare(function, [], [normal(sum(LENGTHS), 3)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_block_under_autocast(dtype):
    torch.manual_seed(0)
    block = ErwinBlock(64, heads=2, ball_size=128)
    rows, balls = sum(LENGTHS), torch.tensor(LENGTHS)
    x, pos = normal(rows, 64), normal(rows, 3, seed=1)
    weight = normal(rows, 64, seed=2)
    exact = x.clone().requires_grad_()
    expected = block(exact, pos, balls)
    expected.backward(weight)
    grads = [p.grad for p in block.parameters()]
    block.zero_grad()
    x, pos, balls, weight = (t.cuda() for t in (x, pos, balls, weight))
    x.requires_grad_()
    block.cuda()
    with torch.autocast("cuda", dtype):
        out = block(x, pos, balls)
    assert out.dtype == torch.float32
    out.backward(weight)
    close = [(out, expected), (x.grad, exact.grad)]
    close += [(p.grad, g) for p, g in zip(block.parameters(), grads, strict=True)]
    for actual, value in close:
        assert actual.dtype == torch.float32
        error = (actual.cpu() - value).norm() / value.norm()
        assert error < 0.05


def test_same_bits_again():
    block = ErwinBlock(64, heads=2, ball_size=128).cuda()
    rows, balls = sum(LENGTHS), torch.tensor(LENGTHS).cuda()
    x, pos = normal(rows, 64).cuda().requires_grad_(), normal(rows, 3).cuda()
    runs = []
    for _ in range(2):
        out = block(x, pos, balls)
        grads = torch.autograd.grad(out.square().sum(), [x, *block.parameters()])
        runs.append([out, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
