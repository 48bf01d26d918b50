r"""The mean message into every node, on a GPU."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.runner import Case, Run, Workload, cuda_seconds
from torch_geometric_erwin.ops.edges import Edges
from torch_geometric_erwin.ops.message import composite, mean_message

_EPS = 1e-5


class Messages(NamedTuple):
    r"""A graph and the rows of its nodes."""

    rows: tuple[Tensor, ...]  # the first six arguments of `mean_message`
    edges: Edges
    grad: Tensor
    train: bool


def _make(n: int, degree: int, channels: int, train: bool, seed: int) -> Messages:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, channels)] * 2 + [(n, 3), (channels, 3), (channels,), (channels,)]
    *rows, grad = (torch.randn(s, generator=generator) for s in (*shapes, shapes[0]))
    source = torch.randint(n, (n * degree,), generator=generator)
    target = torch.arange(n).repeat_interleave(degree)
    edges = Edges(torch.stack([source, target]).cuda(), n)
    leaves = [t.cuda() for t in rows]
    for i in (0, 1, 3, 4, 5):  # all but the positions have gradients
        leaves[i].requires_grad_(train)
    for end in (0, 1):  # sorted before, because all layers and steps can share it
        edges.by(end)
    return Messages(tuple(leaves), edges, grad.cuda(), train)


def _step(m: Messages, out: Tensor) -> tuple[Tensor, ...]:
    if not m.train:
        return (out,)
    leaves = [t for t in m.rows if t.requires_grad]
    return (out.detach(), *torch.autograd.grad(out, leaves, m.grad))


def _ours(m: Messages) -> tuple[Tensor, ...]:
    source, target, pos, weight, scale, shift = m.rows
    with torch.set_grad_enabled(m.train):
        rows = (source, target, pos, weight, scale, shift)
        return _step(m, mean_message(*rows, _EPS, m.edges))


def _torch(m: Messages) -> tuple[Tensor, ...]:
    with torch.set_grad_enabled(m.train):
        return _step(m, composite(m.rows, _EPS, *m.edges.edge_index))


def _load(run: Run) -> Run:
    return run


def _close(
    m: Messages, expected: tuple[Tensor, ...], actual: tuple[Tensor, ...]
) -> None:
    for e, a in zip(expected, actual, strict=True):
        error = (a.double() - e.double()).norm() / e.double().norm()
        assert error < 1e-5, f"off by {float(error):.1e}"


def _workload(n: int, degree: int, channels: int, train: bool) -> Workload:
    # Bytes: rows of nodes once, and indices of edges. A backward pass adds gradients of
    # rows, and four numbers per edge, written and read. Rows that are gathered again
    # are in the cache and not counted.
    size = 4 * n * channels * (3 + 5 * train)
    size += n * degree * (16 + train * (32 + 32))
    step = "forward + backward" if train else "forward"
    return Workload(
        f"{n} nodes, {degree} edges each, {channels} channels, {step}",
        partial(_make, n, degree, channels, train),
        {"PyTorch": partial(_load, _torch), "ours, triton": partial(_load, _ours)},
        "PyTorch",
        _close,
        {
            **{"nodes": n, "degree": degree, "channels": channels},
            **{"train": train, "bytes": size},
        },
        seconds=cuda_seconds,
    )


def message_cuda(size: str) -> Iterator[Workload]:
    r"""The embedding of a large cloud; empty without a GPU."""
    if not torch.cuda.is_available():
        return
    n = 1024 if size == "tiny" else 32_768
    for channels in (32, 64, 128) if size == "full" else (64,):
        for train in (False, True):
            yield _workload(n, 16, channels, train)


CASES = [
    Case("message_cuda", "Mean messages on a GPU (needs one)", message_cuda),
]
