"""Random calls that must succeed; results are compared with those of independent code.

Every function takes a generator of random numbers, which alone determines the case.
"""

import numpy as np
import torch
from numpy.random import Generator
from oracles import ball_tree as tree_oracle
from oracles import neighbors as neighbor_oracle
from scipy.spatial import cKDTree

from torch_geometric_erwin import (
    Level,
    ball_tree,
    knn,
    knn_graph,
    radius,
    radius_graph,
)
from torch_geometric_erwin.nn.attention import BallAttention
from torch_geometric_erwin.nn.attention.ball_attention import ball_attention
from torch_geometric_erwin.ops.ball_attention import reference
from torch_geometric_erwin.ops.ball_tree import rotation_matrix
from torch_geometric_erwin.ops.edges import Edges
from torch_geometric_erwin.ops.message import composite, mean_message


def view(rng: Generator, x: torch.Tensor) -> torch.Tensor:
    """The same values in another memory layout."""
    form = rng.integers(4)
    if form == 1:  # columns
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if form == 2:  # every other row
        return torch.stack([x, torch.full_like(x, 7)], 1).flatten(0, 1)[::2]
    if form == 3:  # in the middle
        return torch.cat([torch.zeros_like(x), x, x])[x.size(0) : 2 * x.size(0)]
    return x


def clouds(rng: Generator, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of several kinds, and offsets."""
    sizes = rng.choice([0, 1, 2, 7, 8, 9, 15, 16, 17, most], rng.integers(1, 4))
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    shape = (ptr[-1], rng.integers(1, 6))
    kind = rng.integers(4)
    pos = rng.standard_normal(shape)
    if kind == 1:
        pos = np.round(pos)  # a grid, with coincident points
    elif kind == 2:
        pos = pos * 1e-40
    elif kind == 3:
        pos = pos * 1e6
    dtype = torch.float64 if rng.integers(2) else torch.float32
    return torch.from_numpy(pos).to(dtype), torch.from_numpy(ptr)


def trees(rng: Generator) -> None:
    """Compares trees with their definition."""
    pos, ptr = clouds(rng, most=120)
    layout, ties = [
        ("balanced", "index"),
        ("perfect", "index"),
        ("balanced", "coordinates"),
    ][rng.integers(3)]
    levels = rng.integers(1, 4)
    sizes = [4, 8, 16, 32] if layout == "perfect" else [1, 3, 8, 16, 25]
    steps = [2, 4] if layout == "perfect" else [1, 2, 3, 5]
    ball_sizes = rng.choice(sizes, levels).tolist()
    strides = rng.choice(steps, levels - 1).tolist()
    rotate = float(rng.choice([0.0, 45.0, -30.0]))
    tree = ball_tree(
        view(rng, pos),
        ptr=view(rng, ptr),
        **{"ball_sizes": ball_sizes, "strides": strides, "rotate": rotate},
        **{"layout": layout, "ties": ties},
    )
    rotation = rotation_matrix(rotate, pos.size(1)).numpy() if rotate else None
    arrays = pos.numpy()
    expected = tree_oracle.ball_tree(
        arrays, ptr.tolist(), ball_sizes, strides, rotation, layout, ties
    )
    np.testing.assert_array_equal(tree.perm, expected.perm)
    np.testing.assert_array_equal(tree.level, expected.level)
    lengths = [*tree.ball_len, *tree.group_len]
    for found, right in zip(lengths, expected.ball_len + expected.group_len):
        assert found.tolist() == right
    if ties == "index":  # the oracle does not know how a rotated tree breaks ties
        for found, right in zip(tree.perm_rot, expected.perm_rot, strict=True):
            np.testing.assert_array_equal(found, right)


def neighbors(rng: Generator) -> None:
    """Compares neighbours with brute force, and distances with SciPy."""
    pos, ptr = clouds(rng, most=150)
    k, loop = int(rng.choice([1, 2, 8, 31, 200])), bool(rng.integers(2))
    cap = [None, 1, 5, 64][rng.integers(4)]
    spread = float(pos.double().std(0).mean()) if len(pos) > 1 else 1.0
    r = spread * float(rng.choice([0.1, 0.5, 2]))
    tree = None
    if rng.integers(2):
        tree = ball_tree(pos, ptr=ptr, ball_sizes=int(rng.integers(1, 40)), rotate=0.0)
    options = {"ptr": view(rng, ptr), "loop": loop, "tree": tree}
    found = knn_graph(view(rng, pos), k, **options)
    right = neighbor_oracle.knn(pos.numpy(), ptr.tolist(), k, loop)
    np.testing.assert_array_equal(found, neighbor_oracle.edges(right))
    within = radius_graph(view(rng, pos), r, max_num_neighbors=cap, **options)
    right = neighbor_oracle.radius(pos.numpy(), ptr.tolist(), r, cap, loop)
    np.testing.assert_array_equal(within, neighbor_oracle.edges(right))
    _two_sets(rng, pos, ptr, k, r, cap, tree)
    if loop and len(ptr) == 2 and len(pos) >= k and pos.abs().max() > 1e-3:
        distance, _ = cKDTree(pos.double()).query(pos.double(), k)
        mine = (pos[found[0]] - pos[found[1]]).double().norm(dim=1)
        np.testing.assert_allclose(mine, np.ravel(distance), rtol=1e-4, atol=1e-6)


def _two_sets(rng: Generator, x, ptr_x, k: int, r: float, cap, tree) -> None:
    """Compares neighbours of other points with brute force."""
    sizes = torch.from_numpy(rng.choice([0, 1, 3, 16, 17, 50], len(ptr_x) - 1))
    ptr_y = torch.cat([torch.zeros(1).long(), sizes.long().cumsum(0)])
    y = torch.from_numpy(rng.standard_normal((int(ptr_y[-1]), x.size(1)))).to(x.dtype)
    y = y * float(x.double().std(0).mean()) if len(x) > 1 else y
    same = min(len(x), len(y) // 2)
    y[:same] = x[:same]
    options = {"ptr_x": view(rng, ptr_x), "ptr_y": view(rng, ptr_y), "tree": tree}
    sets = (x.numpy(), ptr_x.tolist(), y.numpy(), ptr_y.tolist())
    found = knn(view(rng, x), view(rng, y), k, **options).flip(0)
    right = neighbor_oracle.cross_knn(*sets, k)
    np.testing.assert_array_equal(found, neighbor_oracle.edges(right))
    within = radius(x, y, r, max_num_neighbors=cap, **options).flip(0)
    right = neighbor_oracle.cross_radius(*sets, r, cap)
    np.testing.assert_array_equal(within, neighbor_oracle.edges(right))


def _leaves(tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    return [t.detach().to(dtype).requires_grad_() for t in tensors]


def _assert_near(found, right, tolerance: float) -> None:
    """The tolerance is relative to the largest entry: each is a sum of many terms."""
    for a, b in zip(found, right, strict=True):
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)


def attention(rng: Generator) -> None:
    """Compares ball attention and its gradients with the reference in float64."""
    ball_len = torch.from_numpy(rng.choice([0, 1, 5, 16, 33, 64], rng.integers(1, 6)))
    rows, heads, channels = int(ball_len.sum()), rng.integers(1, 4), rng.integers(1, 40)
    half = rng.integers(3) == 0
    qkv = torch.from_numpy(rng.standard_normal((3, rows, heads, channels)))
    qkv = qkv.to(torch.bfloat16 if half else torch.float32)
    tensors = [*qkv, torch.from_numpy(rng.standard_normal((rows, rng.integers(1, 4))))]
    tensors.append(torch.from_numpy(rng.standard_normal(heads)).float())
    perm = torch.from_numpy(rng.permutation(rows)) if rng.integers(2) else None
    grad = torch.from_numpy(rng.standard_normal((rows, heads, channels))).to(qkv.dtype)
    found_at = _leaves(tensors, torch.float32)
    right_at = _leaves(tensors, torch.float64)
    q, k, v = (view(rng, t.to(qkv.dtype)) for t in found_at[:3])
    found = ball_attention(
        *(q, k, v, view(rng, found_at[3]), view(rng, ball_len), found_at[4]),
        **{"ball_size": 64, "perm": perm, "scale": 0.3},
    )
    right = reference.run(
        tuple(right_at[:3]), right_at[3], ball_len, right_at[4], perm, 64, 0.3
    )
    tolerance = 0.06 if half else 2e-5
    _assert_near([found], [right], tolerance)
    _assert_near(
        torch.autograd.grad(found, found_at, grad),
        torch.autograd.grad(right, right_at, grad.double()),
        tolerance,
    )


def message(rng: Generator) -> None:
    """Compares message passing and its gradients with PyTorch in float64."""
    n, channels, dim = (int(rng.integers(1, most)) for most in (150, 70, 5))
    edge_index = torch.from_numpy(rng.integers(0, n, (2, rng.integers(0, 300))))
    shapes = [(n, channels)] * 2 + [(n, dim), (channels, dim), channels, channels]
    tensors = [torch.from_numpy(rng.standard_normal(shape)) for shape in shapes]
    found_at = _leaves([t.float() for t in tensors], torch.float32)
    right_at = _leaves(found_at, torch.float64)
    edges = Edges(view(rng, edge_index.t()).t(), n)
    found = mean_message(*[view(rng, t) for t in found_at], 1e-2, edges)
    right = composite(right_at, 1e-2, *edge_index)
    grad = torch.from_numpy(rng.standard_normal((n, channels))).float()
    _assert_near([found], [right], 1e-3)
    _assert_near(
        torch.autograd.grad(found, found_at, grad),
        torch.autograd.grad(right, right_at, grad.double()),
        1e-3,
    )


def forces(rng: Generator) -> None:
    """Training on forces through two layers: second derivatives, in float32."""
    torch.manual_seed(int(rng.integers(2**31)))
    layers = [BallAttention(8, 2, ball_size=8) for _ in range(2)]
    x = torch.from_numpy(rng.standard_normal((20, 8)))
    pos = torch.from_numpy(rng.standard_normal((20, 3)))
    ball_len, wanted = torch.tensor([8, 8, 4]), torch.from_numpy(rng.random((20, 3)))

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        at, h = pos.to(dtype).requires_grad_(), x.to(dtype)
        level = Level.build(at, ball_len, ball_size=8)
        for layer in layers:
            h = h + layer.to(dtype)(h, level).tanh()
        force = torch.autograd.grad(h.square().sum(), at, create_graph=True)[0]
        loss = (force - wanted).square().mean()
        leaves = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [grad.double() for grad in grads if grad is not None]

    _assert_near(gradients(torch.float32), gradients(torch.float64), 1e-3)
