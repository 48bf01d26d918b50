"""Tensors with `requires_grad` get the right gradient, or there is an error."""

from dataclasses import replace

import pytest
import torch
from clouds import randomised

from torch_geometric_erwin import Level, ball_tree
from torch_geometric_erwin.data.padding import masked_mean
from torch_geometric_erwin.nn import (
    MPNN,
    BallAttention,
    BallPooling,
    BallUnpooling,
    Erwin,
    ErwinBlock,
    MPNNConv,
    SwiGLU,
    ball_attention,
)
from torch_geometric_erwin.nn.models.embedding import MPNNEmbedding
from torch_geometric_erwin.nn.models.erwin import ErwinStage
from torch_geometric_erwin.nn.norm import BatchNorm
from torch_geometric_erwin.ops import linear

N, C, PTR = 11, 4, torch.tensor([0, 6, 6, 11])
GENERATOR = torch.Generator().manual_seed(0)
BALLS = torch.tensor([4, 2, 4, 1])
PERM = torch.tensor([1, 3, 0, 2, 5, 4, 10, 6, 8, 7, 9])
EDGES = torch.randint(N, (2, 20), generator=GENERATOR)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


X, POS, WIDE, COARSE = normal(N, C), normal(N, 3), normal(N, 2 * C), normal(6, 2 * C)
QKV, SIGMA = [normal(N, 2, 3) for _ in range(3)], normal(2)
TREE = ball_tree(POS, ptr=PTR, ball_sizes=[4, 2], strides=[2])
POOL = randomised(BallPooling(C, C, 2)).eval()


def attend(perm=None):
    def function(q, k, v, pos, sigma):
        return ball_attention(q, k, v, pos, BALLS, sigma, ball_size=4, perm=perm)

    return function


def layer(module, *args, **kwargs):
    """Returns a function of the arguments that are `...` here."""
    module = randomised(module).eval()

    def function(*tensors):
        given = iter(tensors)
        values = [next(given) if arg is ... else arg for arg in args]
        return module.to(tensors[-1].dtype)(*values, **kwargs)

    return function


def of_level(module, views):
    """Returns a function of rows, further features and, as the last one, positions."""
    module = randomised(module).eval()

    def function(*tensors):
        *rows, pos = tensors
        return module.to(pos.dtype)(*rows, *views(pos))

    return function


def main(pos):
    return (Level.build(pos, BALLS, ball_size=4, ptr=PTR, perm_rot=PERM),)


def rotated(pos):
    return (main(pos)[0].rotated(),)


def of_offset(offset):
    """A level with the given offset, independent of the positions."""
    return (replace(*rotated(POS), offset=offset),)


def pooled(x, pos):
    """Also returns the positions of the coarse level."""
    _, coarse = TREE.levels(pos)
    return POOL.to(pos.dtype)(x, coarse), coarse.pos


ERWIN = {"ball_sizes": [4, 2], "dec_depths": 1}
FUNCTIONS = {
    "ball_attention": (attend(), (*QKV, POS, SIGMA)),
    "ball_attention, rotated": (attend(PERM), (*QKV, POS, SIGMA)),
    "BallAttention": (of_level(BallAttention(C, 2, 4), main), (X, POS)),
    "BallAttention, offset": (
        of_level(BallAttention(C, 2, 4), of_offset),
        (X, POS / 2),
    ),
    "ErwinBlock": (of_level(ErwinBlock(C, 2, 4), rotated), (X, POS)),
    "ErwinStage": (
        of_level(ErwinStage(ErwinBlock(C, 2, 4) for _ in range(2)), main),
        (X, POS),
    ),
    "BallPooling": (pooled, (X, POS)),
    "BallUnpooling": (
        of_level(BallUnpooling(2 * C, C, 2), TREE.levels),
        (COARSE, X, POS),
    ),
    "SwiGLU": (layer(SwiGLU(C, 8), ...), (X,)),
    "BatchNorm": (layer(BatchNorm(C), ...), (X,)),
    "MPNNConv": (layer(MPNNConv(C), ..., ..., EDGES), (X, POS)),
    "MPNNEmbedding": (layer(MPNNEmbedding(C, 6, 2), ..., ..., EDGES), (X, POS)),
    "MPNN": (layer(MPNN(C, 8, 3, num_layers=2), ..., ..., EDGES), (X, POS)),
    "Erwin": (
        layer(Erwin(C, [C, 8], 3, **ERWIN), ..., ..., EDGES, ptr=PTR, tree=TREE),
        (X, POS),
    ),
    "Erwin, tree built inside": (
        layer(Erwin(C, [C, 8], 3, **ERWIN, mp_steps=0), ..., ..., ptr=PTR),
        (X, POS),
    ),
    "Erwin, repeated points": (
        layer(Erwin(C, [C, 8], 3, **ERWIN, layout="perfect"), ..., ..., EDGES),
        (X, POS),
    ),
    "masked_mean": (lambda x: masked_mean(x, torch.arange(N) < 7), (X,)),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def leaves_of(tensors, dtype):
    return [t.to(dtype).requires_grad_() for t in tensors]


def gradients(function, leaves):
    outs = function(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    loss = sum(
        (out * torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)).sum()
        for out in outs
    )
    return torch.autograd.grad(loss, leaves)  # raises if a leaf is not used


@every_function
def test_passes_gradcheck(name):
    function, tensors = FUNCTIONS[name]
    leaves = leaves_of(tensors, torch.float64)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@every_function
def test_float32_equals_float64(name, monkeypatch):
    monkeypatch.setattr(linear, "_SMALL", 0)  # use the native product for any size
    function, tensors = FUNCTIONS[name]
    actual = gradients(function, leaves_of(tensors, torch.float32))
    expected = gradients(function, leaves_of(tensors, torch.float64))
    for a, e in zip(actual, expected, strict=True):
        assert e.abs().max() > 0
        assert (a - e).norm() <= 1e-4 * e.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_backend_without_a_gradient_to_positions_says_so(dtype):
    q, k, v, pos, sigma = leaves_of((*QKV, POS, SIGMA), dtype)
    args = (q, k, v, pos, BALLS, sigma)
    with pytest.raises(ValueError, match="it has no gradient to positions"):
        ball_attention(*args, ball_size=4, backend="sdpa")
    with torch.no_grad():  # no tensor needs a gradient here
        out = ball_attention(*args, ball_size=4, backend="sdpa")
    assert out.shape == q.shape
