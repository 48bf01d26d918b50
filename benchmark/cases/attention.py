r"""Attention inside balls."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.inputs import clouds
from benchmark.runner import Case, Run, UnavailableError, Workload
from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.nn import ball_attention
from torch_geometric_erwin.ops.ball_attention import BACKENDS

_HEADS = 8


class Balls(NamedTuple):
    r"""Full balls, in the memory layout that is fastest for each implementation."""

    rows: tuple[Tensor, ...]  # q, k, v [N, H, d], parts of one tensor [N, 3, H, d]
    dense: tuple[Tensor, ...]  # q, k, v [K, H, B, d], contiguous
    original: tuple[Tensor, ...]  # q, k, v [K, H, B, d], stride 3 along d
    pos: Tensor  # [N, D]
    ball_len: Tensor  # [K]
    sigma: Tensor  # [H]
    grad: Tensor  # [N, H, d], the gradient at the output


def make_balls(n: int, d: int, ball: int, train: bool, seed: int) -> Balls:
    r"""Queries, keys and values of one cloud in tree order.

    Args:
        n: The number of rows.
        d: The channels of a head.
        ball: The rows of a ball.
        train: Whether gradients are wanted.
        seed: The seed; the same seed makes the same balls.
    """
    pos = clouds(1, n, seed=seed).pos
    pos = pos[ball_tree(pos, ball_sizes=[ball], rotate=0.0).perm]
    generator = torch.Generator().manual_seed(seed)
    qkv, grad = torch.randn(4, n, _HEADS, d, generator=generator).split([3, 1])
    rows = qkv.movedim(0, 1).contiguous().requires_grad_(train)
    dense = qkv.view(3, -1, ball, _HEADS, d).transpose(2, 3).contiguous()
    original = dense.movedim(0, -1).contiguous().requires_grad_(train)
    return Balls(
        rows.unbind(1),
        tuple(t.requires_grad_(train) for t in dense.unbind()),
        original.unbind(-1),
        pos,
        torch.full((n // ball,), ball),
        (-1 + 0.01 * torch.randn(_HEADS, generator=generator)).requires_grad_(train),
        grad[0],
    )


def _biased(b: Balls, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    pos = b.pos.view(q.size(0), -1, b.pos.size(1))
    bias = b.sigma[:, None, None] * torch.cdist(pos, pos).unsqueeze(1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return out.transpose(1, 2).flatten(0, 1)


def dense(b: Balls) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""SDPA with contiguous queries, keys and values."""
    return _biased(b, *b.dense), b.dense


def original(b: Balls) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""SDPA with the memory layout of the original's projection."""
    return _biased(b, *b.original), b.original


def _whole(b: Balls) -> tuple[Tensor, tuple[Tensor, ...]]:
    q, k, v = (t.transpose(1, 2).reshape(1, -1, *t.shape[1::2]) for t in b.dense)
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    return out[0].transpose(0, 1), b.dense


def _ours(backend: str, b: Balls) -> tuple[Tensor, tuple[Tensor, ...]]:
    args = (*b.rows, b.pos, b.ball_len, b.sigma)
    size = b.pos.size(0) // b.ball_len.size(0)
    return ball_attention(*args, ball_size=size, backend=backend), b.rows


def moved(b: Balls, device: str, dtype: torch.dtype, train: bool) -> Balls:
    r"""The same balls on another device.

    Args:
        b: The balls.
        device: The device.
        dtype: The data type of everything except the positions.
        train: Whether gradients are wanted.
    """

    def move(x: Tensor) -> Tensor:
        return x.detach().to(device, dtype).requires_grad_(train)

    return Balls(
        move(torch.stack(b.rows, dim=1)).unbind(1),
        tuple(move(t) for t in b.dense),
        move(torch.stack(b.original, dim=-1)).unbind(-1),
        b.pos.to(device),
        b.ball_len.to(device),
        move(b.sigma),
        b.grad.to(device, dtype),
    )


def attend_by(how: Union[str, Callable[[Balls], Any]], device: str = "cpu") -> Run:
    r"""A function of the balls that returns the output, and gradients if wanted.

    Args:
        how: One of our backends, or a function of the balls that returns the output and
            the q, k and v from which it computed it.
        device: The device on which it runs.
    """
    attend = partial(_ours, how) if isinstance(how, str) else how
    try:  # a backend that cannot run here says why
        attend(moved(make_balls(16, 8, 16, False, 0), device, torch.float32, False))
    except ValueError as error:
        raise UnavailableError(str(error)) from None

    def run(b: Balls) -> list[Tensor]:
        with torch.set_grad_enabled(b.sigma.requires_grad):
            out, qkv = attend(b)
        if not b.sigma.requires_grad:
            return [out]
        grads = torch.autograd.grad(out, [*qkv, b.sigma], b.grad, allow_unused=True)
        return [out.detach(), *grads]

    return run


def _rows(grad: Tensor) -> Tensor:
    return grad if grad.dim() == 3 else grad.transpose(1, 2).flatten(0, 1)


def close(
    b: Balls, expected: list[Tensor], actual: list[Tensor], limit: float = 2e-3
) -> None:
    r"""Checks the relative error, in the norm.

    The limits are large because the baseline computes distances with cdist's matrix
    form, which has errors of 7e-4 in the unit cube. Sigma's gradient sums all of them.

    Args:
        b: The inputs.
        expected: The output and gradients of the baseline.
        actual: The output and gradients of another implementation.
        limit: The largest relative error; ten times that for sigma's gradient.
    """
    names = ["out", "dq", "dk", "dv", "dsigma"]
    for name, a, e in zip(names, actual, expected, strict=False):
        if name.startswith("d") and name != "dsigma":
            a, e = (
                t if t.dim() == 3 else t.transpose(1, 2).flatten(0, 1) for t in (a, e)
            )
        error = float((a - e).norm() / e.norm())
        most = 10 * limit if name == "dsigma" else limit
        assert error < most, f"'{name}' is off by {error:.1e}"


def _workload(n: int, d: int, ball: int, train: bool, full: bool = False) -> Workload:
    implementations: dict[str, Callable[[], Run]] = {
        "SDPA, dense bias": partial(attend_by, dense),
        "SDPA, the original's layout": partial(attend_by, original),
    }
    for backend in BACKENDS:
        # The reference is the same computation as SDPA with a bias, and Triton needs a
        # GPU.
        if backend not in ("reference", "triton"):
            implementations[f"ours, {backend}"] = partial(attend_by, backend)
    if full:
        implementations["SDPA, the whole cloud"] = partial(attend_by, _whole)
    # Per pair of rows: two products forward, four more backward.
    products = 6 if train else 2
    params: dict[str, Any] = {"points": n, "heads": _HEADS, "channels": d, "ball": ball}
    return Workload(
        f"d {d}, balls of {ball}, {'forward + backward' if train else 'forward'}",
        partial(make_balls, n, d, ball, train),
        implementations,
        "SDPA, dense bias",
        close,
        {**params, "train": train, "flops": 2 * products * n * ball * _HEADS * d},
        frozenset({"SDPA, the whole cloud"}),
    )


def attention(size: str) -> Iterator[Workload]:
    r"""Ball attention for a grid of channels and ball sizes."""
    channels = {"tiny": [8], "quick": [16]}.get(size, [8, 16, 32, 64])
    balls = {"tiny": [16], "quick": [128]}.get(size, [64, 128, 256])
    n = 64 if size == "tiny" else 8192
    for train in (False, True):
        for d in channels:
            for ball in balls:
                full = size == "tiny" or (d, ball) == (16, 128)
                yield _workload(n, d, ball, train, full)


def attention_memory(size: str) -> Iterator[Workload]:
    r"""Memory of ball attention on a level of a large cloud."""
    n = {"tiny": 64, "quick": 8192}.get(size, 65_536)
    for ball in [16] if size == "tiny" else [128, 256]:
        for train in (False, True):
            yield _workload(n, 16, ball, train)


CASES = [
    Case("attention", "Attention inside balls, 8 heads", attention, serial=True),
    Case(
        "attention_memory",
        "Peak memory of attention inside balls, 8 heads of 16 channels",
        attention_memory,
        measures=("memory",),
    ),
]
