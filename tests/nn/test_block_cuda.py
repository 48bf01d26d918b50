"""A block on a GPU, in half precision and twice."""

import pytest
import torch

from torch_geometric_erwin.nn import ErwinBlock

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LENGTHS = [128, 0, 1, 127, 128, 40]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
