"""Helpers for tests of message passing, in the interpreter and on a GPU."""

import torch

from torch_geometric_erwin.ops.message import composite

EPS = 1e-5
# Nodes and edges: none, one, fewer edges than nodes, many edges a node.
GRAPHS = [(0, 0), (1, 0), (5, 0), (1, 1), (2, 5), (9, 4), (9, 60)]
WIDTHS = [(1, 3), (16, 1), (20, 2), (64, 3), (96, 3), (300, 5)]  # channels, coordinates


def inputs(n, num_edges, channels, dim, pos_dtype=torch.float32, device="cpu"):
    """Float arguments, edges with loops and repeats, and a gradient of the output."""
    generator = torch.Generator().manual_seed(100 * n + num_edges)
    shapes = [(n, channels)] * 2 + [(n, dim), (channels, dim), (channels,), (channels,)]
    *rows, grad = (torch.randn(s, generator=generator) for s in (*shapes, shapes[0]))
    rows[2] = rows[2].to(pos_dtype)
    edge_index = torch.randint(max(n, 1), (2, num_edges), generator=generator)
    return [t.to(device) for t in rows], edge_index.to(device), grad.to(device)


def reference(rows, edge_index, grad):
    """The output, and the gradients of all rows but positions, in float64."""
    leaves = [t.detach().double().requires_grad_() for t in rows]
    out = composite(leaves, EPS, *edge_index)
    leaves = [*leaves[:2], *leaves[3:]]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


def assert_close(actual, expected, channels, tolerance=4e-6):
    """The tolerance is relative to the largest entry: gradients sum over many edges."""
    if channels < 5:  # a variance near zero magnifies rounding
        tolerance = 1e-3
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)
