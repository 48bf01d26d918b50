"""Forces, and gradients of losses on forces, for combinations of layers in float32.

Native operators do not run in float64, so a test in float64 says nothing about training
in float32. Here every combination runs in float32 and is compared with a float64 copy,
whose derivatives are compared with finite differences.
"""

import copy
from dataclasses import replace

import pytest
import torch
from clouds import randomised
from torch.utils._python_dispatch import TorchDispatchMode

from torch_geometric_erwin import Level, ball_tree, knn_graph
from torch_geometric_erwin.nn import (
    BallAttention,
    BallPooling,
    BallUnpooling,
    Erwin,
    ErwinBlock,
    MPNNConv,
    SwiGLU,
)
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.nn.models.erwin import ErwinStage
from torch_geometric_erwin.ops import linear
from torch_geometric_erwin.utils.centre import centre_dense

# Batches in training with gradients of positions: clouds depend on each other, as told.
pytestmark = pytest.mark.filterwarnings(
    "ignore:in training, a norm over the batch:UserWarning"
)

C, SIZES = 8, [13, 0, 1, 9, 2]
PTR = torch.tensor([0, *SIZES]).cumsum(0)
GENERATOR = torch.Generator().manual_seed(0)
# In tree order, for layers that do not use a tree.
POS = torch.randn(int(PTR[-1]), 3, generator=GENERATOR, dtype=torch.float64)
TREE = ball_tree(POS, ptr=PTR, ball_sizes=[8, 4], strides=[2])
POS = POS[TREE.global_perm()]
TREE = TREE.update(POS)
EDGES = knn_graph(POS, 3, ptr=PTR)
BALLS, GROUPS = TREE.ball_len[0], TREE.group_len[0]
PERM = TREE.global_perm_rot(0)


def level_of(pos):
    return Level.build(pos, BALLS, ball_size=8, ptr=PTR, perm_rot=PERM)


def coarse_of(pos):
    children, centre = centre_dense(pos, GROUPS, 2)
    level = Level.build(centre, TREE.ball_len[1], ball_size=4, ptr=TREE.ptr(1))
    return replace(level, group_len=GROUPS, children=children)


class Composition(torch.nn.Module):
    """An energy of positions; both features and distances depend on positions."""

    def __init__(self, **layers):
        super().__init__()
        self.layers = torch.nn.ModuleDict(layers)
        self.start = torch.nn.Linear(3, C)

    def forward(self, pos):
        out = self.rows(self.start(pos), pos)
        return out.square().sum() / out.numel()


class Attention(Composition):
    def rows(self, x, pos):
        return self.layers["a"](x, level_of(pos))


class Blocks(Composition):
    def rows(self, x, pos):
        level = level_of(pos)
        return self.layers["b"](self.layers["a"](x, level), level.rotated())


class Stage(Composition):
    def rows(self, x, pos):
        return self.layers["stage"](x, level_of(pos))


class Convs(Composition):
    def rows(self, x, pos):
        return self.layers["b"](self.layers["a"](x, pos, EDGES), pos, EDGES)


class Hybrid(Composition):
    def rows(self, x, pos):
        messages = self.layers["conv"](x, pos, EDGES)
        return self.layers["mlp"](x + messages + self.layers["ball"](x, level_of(pos)))


class Twice(Composition):
    """One layer that runs twice: the second input depends on its weights."""

    def rows(self, x, pos):
        return self.layers["a"](self.layers["a"](x))


class UNet(Composition):
    def rows(self, x, pos):
        fine, coarse = level_of(pos), coarse_of(pos)
        return self.layers["up"](self.layers["down"](x, coarse), x, fine, coarse)


class Whole(Composition):
    def rows(self, x, pos):
        return self.layers["model"](x, pos, EDGES, ptr=PTR)


def erwin(**kwargs):
    options = {"ball_sizes": [8, 4], "mp_steps": 2, **kwargs}
    return Whole(model=Erwin(C, [C, 2 * C], 4, **options).eval())


COMPOSITIONS = {
    "attention": lambda: Attention(a=BallAttention(C, 2, 8)),
    "blocks": lambda: Blocks(a=ErwinBlock(C, 2, 8), b=ErwinBlock(C, 4, 8)),
    "stage": lambda: Stage(stage=ErwinStage(ErwinBlock(C, 2, 8) for _ in range(3))),
    "convs": lambda: Convs(a=MPNNConv(C), b=MPNNConv(C)),
    "conv to source": lambda: Convs(
        a=MPNNConv(C, flow="target_to_source"), b=MPNNConv(C)
    ),
    "hybrid": lambda: Hybrid(
        conv=MPNNConv(C), ball=BallAttention(C, 2, 8), mlp=SwiGLU(C, 2 * C)
    ),
    "feed-forward": lambda: Twice(a=SwiGLU(C, 2 * C)),
    "linear": lambda: Twice(a=Linear(C, C)),
    "pooling": lambda: UNet(
        down=BallPooling(C, 2 * C, 2), up=BallUnpooling(2 * C, C, 2)
    ).eval(),
    "model": erwin,
    "training": lambda: erwin(norm="batch").train(),
    "norms of clouds": lambda: erwin(norm="graph", block_norm="graph").train(),
    "relative distances": lambda: erwin(distance="relative"),
    "recomputed": lambda: erwin(checkpoint=True),
    "repeated points": lambda: erwin(layout="perfect"),
}
NATIVE = {
    **{name: {"ball_attention_packed"} for name in ("attention", "blocks", "stage")},
    **{name: {"message"} for name in ("convs", "conv to source")},
    **{name: {"linear"} for name in ("linear", "pooling")},
    "feed-forward": {"swiglu"},
}
EVERY = {"ball_attention_packed", "message", "swiglu", "linear"}
every_composition = pytest.mark.parametrize("name", COMPOSITIONS)


@pytest.fixture(autouse=True)
def native_at_any_size(monkeypatch):
    monkeypatch.setattr(linear, "_SMALL", 0)


class Operators(TorchDispatchMode):
    """Records which native operators are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func.name().partition("::")
        if namespace == "erwin":
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def composition(name, dtype):
    return randomised(COMPOSITIONS[name]()).to(dtype)


def force_of(module, pos, **kwargs):
    return -torch.autograd.grad(module(pos), pos, **kwargs)[0]


WEIGHT = torch.randn(POS.shape, generator=GENERATOR, dtype=torch.float64)


def force_loss(module, pos):
    """The force, and a loss with linear and quadratic terms of all gradients."""
    leaves = [pos, *module.parameters()]
    options = {"create_graph": True, "materialize_grads": True}
    slope, *grads = torch.autograd.grad(module(pos), leaves, **options)
    penalty = sum(g.square().sum() for g in (slope, *grads))
    return -slope, (WEIGHT.to(slope.dtype) * slope).sum() + penalty


def derivatives(module, dtype):
    """The force, and the gradients of a loss on it in positions and weights."""
    pos = POS.to(dtype).requires_grad_()
    force, loss = force_loss(module, pos)
    leaves = [pos, *module.parameters()]
    grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return [force.detach(), *grads]


def assert_close(actual, expected, tolerance):
    """The tolerance is relative to the norm of all gradients, some of which vanish."""
    scale = max(float(e.norm()) for e in expected)
    for a, e in zip(actual, expected, strict=True):
        assert (a.double() - e.double()).norm() <= tolerance * scale


@every_composition
def test_float32_equals_float64(name):
    with Operators() as operators:
        actual = derivatives(composition(name, torch.float32), torch.float32)
    assert operators.names >= NATIVE.get(name, EVERY - {"linear"})
    expected = derivatives(composition(name, torch.float64), torch.float64)
    # Rounding errors of 6e-8, enlarged by the second derivatives of a few layers.
    assert_close(actual[:1], expected[:1], 1e-4)
    assert_close(actual[1:], expected[1:], 1e-4)


@every_composition
def test_force_is_the_same_with_and_without_a_graph(name):
    module, pos = composition(name, torch.float32), POS.float().requires_grad_()
    plain = force_of(copy.deepcopy(module), pos)
    assert_close([force_of(module, pos, create_graph=True)], [plain], 1e-4)


@every_composition
def test_float64_equals_finite_differences(name):
    module, pos = composition(name, torch.float64), POS.clone().requires_grad_()
    force, *grads = derivatives(module, torch.float64)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(g.shape, generator=generator).double() for g in grads]
    step = 1e-6

    def moved(sign):
        other = copy.deepcopy(module)
        with torch.no_grad():
            for parameter, d in zip(other.parameters(), directions[1:]):
                parameter += sign * step * d
            return other, (pos + sign * step * directions[0]).requires_grad_()

    def slope(function):
        ends = [function(*moved(sign)).detach() for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * step)

    actual = sum((g * d).sum() for g, d in zip(grads, directions))
    expected = slope(lambda *at: force_loss(*at)[1])
    # The errors of a central difference with step 1e-6, and of rounding divided by it.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    ends = [module(pos + sign * step * directions[0]) for sign in (1, -1)]
    torch.testing.assert_close(
        -(force * directions[0]).sum(),
        (ends[0] - ends[1]).detach() / (2 * step),
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize("name", ["attention", "convs", "hybrid", "feed-forward"])
def test_compositions_pass_gradgradcheck(name):
    module = composition(name, torch.float64)
    pos = POS.clone().requires_grad_()
    assert torch.autograd.gradcheck(module, (pos,), fast_mode=True)
    assert torch.autograd.gradgradcheck(module, (pos,), fast_mode=True)


@pytest.mark.parametrize("name", ["blocks", "convs", "model"])
def test_mixed_precision_is_close(name):
    with torch.autocast("cpu", torch.bfloat16):
        actual = derivatives(composition(name, torch.float32), torch.float32)
    expected = derivatives(composition(name, torch.float64), torch.float64)
    # bfloat16 has 8 bits. A term that is counted twice would cause an error above 0.5.
    assert_close(actual[:1], expected[:1], 0.1)
