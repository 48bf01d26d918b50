"""Function transforms of whole models, compared with autograd and loops."""

import pytest
import torch
from clouds import ragged, randomised
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from torch_geometric_erwin import (
    Tree,
    ball_tree,
    knn,
    knn_graph,
    knn_interpolate,
    radius,
    radius_graph,
)
from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.ops import linear

# The model of "training" couples its clouds, and says so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:in training, a norm over the batch:UserWarning"
)

BATCH = ragged([9, 0, 1, 6])
MODELS = {
    "messages": {"mp_steps": 2},
    "no messages": {"mp_steps": 0},
    "no rotation": {"mp_steps": 1, "rotate": 0.0},
    "repeated points": {"mp_steps": 1, "layout": "perfect"},
    "coarse": {"mp_steps": 1, "decode": False},
    "relative distances": {"mp_steps": 0, "distance": "relative"},
    "training": {"mp_steps": 1, "norm": "batch"},
}
every_model = pytest.mark.parametrize("name", MODELS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture(autouse=True)
def native_at_any_size(monkeypatch):
    """Uses the native product at any size; function transforms must not use it."""
    monkeypatch.setattr(linear, "_SMALL", 0)


class Problem:
    """A loss of weights, features and positions."""

    def __init__(self, name, dtype):
        self.model = Erwin(2, [8, 8], 3, ball_sizes=[4, 2], **MODELS[name])
        self.model = randomised(self.model).to(dtype).train(name == "training")
        self.weights = {n: p.detach() for n, p in self.model.named_parameters()}
        self.x, self.pos = BATCH.x.to(dtype), BATCH.pos.to(dtype)
        self.args = (self.weights, self.x, self.pos)
        # Rounding errors of sums in another order.
        self.tolerance = 1e-4 if dtype == torch.float32 else 1e-10

    def outputs(self, weights, x, pos, tree=None):
        # Copies, because training changes running statistics, which transforms refuse.
        state = {n: b.clone() for n, b in self.model.named_buffers()}
        out = functional_call(
            self.model,
            {**weights, **state},
            (x, pos, BATCH.edge_index),
            {"ptr": BATCH.ptr, "tree": tree},
        )
        return out[0] if isinstance(out, tuple) else out

    def loss(self, *args):
        return self.outputs(*args).square().mean()

    def grads(self):
        """Gradients of weights, features and positions, computed by autograd."""
        weights = {n: w.clone().requires_grad_() for n, w in self.weights.items()}
        x, pos = (t.clone().requires_grad_() for t in (self.x, self.pos))
        leaves = [*weights.values(), x, pos]
        *grads, grad_x, grad_pos = torch.autograd.grad(
            self.loss(weights, x, pos), leaves, materialize_grads=True
        )
        return dict(zip(weights, grads)), grad_x, grad_pos

    def assert_close(self, actual, expected):
        """The tolerance is relative to the largest value."""
        error = (actual - expected).abs().max()
        assert error <= self.tolerance * (1 + expected.abs().max())


@every_dtype
@every_model
def test_grad(name, dtype):
    problem = Problem(name, dtype)
    weights, x, pos = grad(problem.loss, argnums=(0, 1, 2))(*problem.args)
    expected = problem.grads()
    for key, weight in weights.items():
        problem.assert_close(weight, expected[0][key])
    problem.assert_close(x, expected[1])
    problem.assert_close(pos, expected[2])


@every_dtype
@every_model
def test_jvp(name, dtype):
    problem = Problem(name, dtype)
    generator = torch.Generator().manual_seed(0)

    def like(t):
        return torch.randn(t.shape, generator=generator).to(dtype)

    tangents = ({n: like(w) for n, w in problem.weights.items()}, like(problem.x))
    tangents = (*tangents, like(problem.pos))
    _, tangent = jvp(problem.loss, problem.args, tangents)
    weights, x, pos = problem.grads()
    expected = sum((weights[n] * t).sum() for n, t in tangents[0].items())
    expected = expected + (x * tangents[1]).sum() + (pos * tangents[2]).sum()
    problem.assert_close(tangent, expected)


SAMPLES = 3


# PyTorch cannot update running statistics for each sample.
@pytest.mark.parametrize("argument", ["weights", "x", "pos"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "training"])
def test_vmap(name, argument):
    problem = Problem(name, torch.float32)
    index = ["weights", "x", "pos"].index(argument)

    def sample(i):
        args = [*problem.args]
        scale = 1 + 0.1 * i
        if argument == "weights":
            args[0] = {n: w * scale for n, w in args[0].items()}
        elif argument == "x":
            args[1] = args[1] * scale
        else:  # another order of the tree
            args[2] = args[2].roll(i, dims=1)
        return args

    samples = [sample(i) for i in range(SAMPLES)]
    stacked = [*problem.args]
    if argument == "weights":
        stacked[0] = {n: torch.stack([s[0][n] for s in samples]) for n in stacked[0]}
    else:
        stacked[index] = torch.stack([s[index] for s in samples])
    in_dims = tuple(0 if i == index else None for i in range(3))
    actual = vmap(problem.outputs, in_dims)(*stacked)
    for out, args in zip(actual, samples, strict=True):
        problem.assert_close(out, problem.outputs(*args))
    # The gradients of every sample.
    grads = vmap(grad(problem.loss), in_dims)(*stacked)
    expected = grad(problem.loss)(*samples[1])
    for key, value in expected.items():
        problem.assert_close(grads[key][1], value)


def test_graphs_of_samples():
    problem = Problem("messages", torch.float32)

    def outputs(pos):
        edges = knn_graph(pos, 2, ptr=BATCH.ptr)
        args = (problem.x, pos, edges)
        return problem.model(*args, ptr=BATCH.ptr)

    samples = torch.stack([problem.pos, problem.pos.roll(1, dims=1)])
    for out, pos in zip(vmap(outputs)(samples), samples, strict=True):
        problem.assert_close(out, outputs(pos))


def test_hessian_and_jacobian_of_positions():
    problem = Problem("messages", torch.float64)
    config = problem.model.tree_config
    tree = ball_tree(
        problem.pos,
        ptr=BATCH.ptr,
        ball_sizes=config.ball_sizes,
        strides=config.strides,
    )

    def outputs(pos):
        return problem.outputs(problem.weights, problem.x, pos, tree)

    def loss(pos):
        return outputs(pos).square().mean()

    actual = jacrev(outputs)(problem.pos)
    problem.assert_close(
        actual, torch.autograd.functional.jacobian(outputs, problem.pos)
    )
    # Forward over reverse mode, compared with reverse over reverse mode.
    actual = hessian(loss)(problem.pos)
    problem.assert_close(actual, torch.autograd.functional.hessian(loss, problem.pos))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_samples_of_a_vmap_have_their_own_trees(dim, layout):
    generator = torch.Generator().manual_seed(0)
    pos, ptr = torch.rand(4, 12, 2, generator=generator), torch.tensor([0, 7, 7, 12])

    def trees(pos):
        options = {"ball_sizes": [4, 2], "strides": [2], "layout": layout}
        tree = ball_tree(pos, ptr=ptr, **options)
        return [tree, tree.update(-pos)]

    def orders(pos):
        return [(tree.perm, tree.perm_rot) for tree in trees(pos)]

    actual = vmap(orders, in_dims=dim)(pos.movedim(0, dim))
    for i, sample in enumerate(pos):
        for (perm, rotated), (own, own_rotated) in zip(actual, orders(sample)):
            assert torch.equal(perm[i], own)
            for a, e in zip(rotated, own_rotated, strict=True):
                assert torch.equal(a[i], e)


def test_samples_of_a_vmap_share_tables():
    def tables(pos):
        tree = ball_tree(
            pos, ptr=torch.tensor([0, 5, 9]), ball_sizes=[4, 2], strides=[2]
        )
        assert isinstance(tree, Tree)
        return [tree.level, *tree.ball_len, *tree.group_len]

    pos = torch.rand(3, 9, 2)
    actual = vmap(tables, out_dims=None)(pos)
    for a, e in zip(actual, tables(pos[0]), strict=True):
        assert torch.equal(a, e)


def test_nearest_neighbours_of_samples():
    generator = torch.Generator().manual_seed(0)
    pos, ptr = torch.rand(4, 12, 2, generator=generator), torch.tensor([0, 7, 7, 12])
    actual = vmap(lambda pos: knn_graph(pos, 3, ptr=ptr))(pos)
    for edges, sample in zip(actual, pos, strict=True):
        assert torch.equal(edges, knn_graph(sample, 3, ptr=ptr))


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 0)])
def test_nearest_points_of_two_sets_of_samples(in_dims):
    generator = torch.Generator().manual_seed(0)
    ptr_x, ptr_y = torch.tensor([0, 7, 7, 12]), torch.tensor([0, 2, 6, 9])
    shapes = [(4, n, 2) if d == 0 else (n, 4, 2) for n, d in zip((12, 9), in_dims)]
    x, y = (torch.rand(s, generator=generator) for s in shapes)
    x, y = (t[:, 0] if d is None else t for t, d in zip((x, y), in_dims))

    def near(x, y):
        kwargs = {"k": 3, "ptr_x": ptr_x, "ptr_y": ptr_y}
        return knn(x, y, **kwargs), knn_interpolate(x.sin(), x, y, **kwargs)

    actual = vmap(near, in_dims)(x, y)
    for i in range(4):
        sample = [t if d is None else t.select(d, i) for t, d in zip((x, y), in_dims)]
        for a, b in zip(actual, near(*sample), strict=True):
            assert torch.equal(a[i], b)


def test_neighbours_within_a_radius_have_no_common_size():
    with pytest.raises(ValueError, match="different numbers of neighbours"):
        vmap(lambda pos: radius_graph(pos, 0.1))(torch.rand(2, 5, 2))
    with pytest.raises(ValueError, match="different numbers of neighbours"):
        vmap(lambda pos: radius(pos, pos, 0.1))(torch.rand(2, 5, 2))


@pytest.mark.parametrize("transform", [grad, vmap])
def test_values_are_checked_inside_transforms(transform):
    pos = torch.zeros(2, 5, 2)
    pos[1, 3, 0] = float("nan")
    pos = pos if transform is vmap else pos[1]

    def function(pos):
        return ball_tree(pos, ball_sizes=2).perm.sum() + pos.sum()

    with pytest.raises(ValueError, match=r"'pos' must be finite \(row \d is \[nan"):
        transform(function)(pos)
