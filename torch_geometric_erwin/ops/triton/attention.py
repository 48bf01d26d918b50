r"""Launching the attention kernels, without checks and without reading the device.

Grids depend on shapes and the ball size alone, so that a CUDA graph can be replayed for
other balls. Programs without rows return at once.
"""

from functools import cache
from typing import Optional

import torch
import triton
from torch import Tensor

from torch_geometric_erwin.ops.triton.backward import keys_kernel, queries_kernel
from torch_geometric_erwin.ops.triton.forward import forward_kernel
from torch_geometric_erwin.ops.triton.prepare import prepare_kernel
from torch_geometric_erwin.ops.triton.tiles import (
    Tile,
    forward_tile,
    keys_tile,
    queries_tile,
)

_ROWS = 64  # of a program of `prepare_kernel`


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    perm: Optional[Tensor],
    ball_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Returns the output, and what the backward pass needs.

    That is the logarithm of the sum of exponentials of every query and head, in units
    of log 2, then centred positions, and where the balls end.

    Shapes:
        - **output:** :math:`(N, H, d)`, :math:`(N, H)`, :math:`(D, N)`, :math:`(K)`.
    """
    rows, heads, channels = q.shape
    balls = ball_len.size(0)
    out, lse = q.new_empty(q.shape), q.new_empty(rows, heads, dtype=torch.float32)
    centred = pos.new_empty(pos.size(1), rows, dtype=torch.float32)
    ball_len, ends = ball_len.contiguous(), ball_len.cumsum(0)
    if q.numel() == 0 or balls == 0:
        return out.zero_(), lse.zero_(), centred.zero_(), ends
    q, k, v = (_contiguous_channels(t) for t in (q, k, v))
    pos, sigma = pos.contiguous(), sigma.contiguous()
    perm = None if perm is None else perm.contiguous()
    blocks = -(-ball_size // _ROWS)
    prepare_kernel[(balls * blocks,)](
        *(pos, ball_len, ends, perm, centred, out, lse),
        *(rows, blocks, heads, heads * channels, ball_size),
        DIM=pos.size(1),
        BLOCK=_ROWS,
        enable_fp_fusion=True,
    )
    tile = forward_tile(_precision(q), channels, ball_size, _capability(q))
    blocks = -(-ball_size // tile.queries)
    forward_kernel[(balls * blocks * heads,)](
        *(q, k, v, centred, ball_len, ends, sigma, perm, out, lse),
        *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
        *(rows, blocks, heads, scale),
        **_constants(q, pos.size(1), tile),
    )
    return out, lse, centred, ends


def backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    centred: Tensor,
    ends: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    perm: Optional[Tensor],
    ball_size: int,
    scale: float,
    pos_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns the gradients of q, k, v in one tensor, of sigma, and of pos if wanted.

    Shapes:
        - **output:** :math:`(N, 3, H, d)`, :math:`(H)`, and :math:`(N, D)` or
          :math:`(0, D)`.
    """
    rows, heads, channels = q.shape
    balls, dim = ball_len.size(0), pos.size(1)
    grad_qkv = q.new_empty(rows, 3, heads, channels)
    if q.numel() == 0 or balls == 0:
        grad_pos = sigma.new_zeros(rows if pos_grad else 0, dim)
        return grad_qkv.zero_(), sigma.new_zeros(heads), grad_pos
    grad, q, k, v = (_contiguous_channels(t) for t in (grad, q, k, v))
    out, lse, centred, ends = (t.contiguous() for t in (out, lse, centred, ends))
    ball_len, sigma = ball_len.contiguous(), sigma.contiguous()
    perm = None if perm is None else perm.contiguous()
    # Every program writes its own part of a gradient. The parts are summed up below, in
    # an order that depends on sizes alone.
    pos_parts = sigma.new_empty(rows, 2, heads, dim) if pos_grad else None
    about = (_precision(q), channels, ball_size, _capability(q), pos_grad)
    tile = keys_tile(*about)
    blocks = -(-ball_size // tile.keys)
    whole = blocks == 1 and not pos_grad
    sigma_parts = sigma.new_empty(balls * blocks, heads)
    grad_q, grad_k, grad_v = grad_qkv.unbind(1)
    read = (q, k, v, out, grad, lse, centred, ball_len, ends, sigma, perm)
    strides = tuple(s for t in (q, k, v, grad) for s in t.stride()[:2])
    keys_kernel[(balls * blocks * heads,)](
        *(*read, grad_q, grad_k, grad_v, sigma_parts, pos_parts),
        *(*strides, rows, blocks, heads, scale),
        WHOLE=whole,
        AHEAD=tile.ahead,
        **_constants(q, dim, tile),
    )
    if not whole:
        tile = queries_tile(*about)
        blocks = -(-ball_size // tile.queries)
        queries_kernel[(balls * blocks * heads,)](
            *(*read, grad_q, pos_parts, *strides, rows, blocks, heads, scale),
            **_constants(q, dim, tile),
        )
    grad_sigma = sigma_parts.sum(0, dtype=torch.float64).to(sigma.dtype)
    if pos_parts is None:
        return grad_qkv, grad_sigma, sigma.new_empty(0, dim)
    return grad_qkv, grad_sigma, pos_parts.sum((1, 2))


def _contiguous_channels(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _capability(x: Tensor) -> tuple[int, int]:
    # For tests in Triton's interpreter, on the CPU, any capability will do.
    return _capability_of(x.device) if x.is_cuda else (9, 0)


@cache
def _capability_of(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _precision(x: Tensor) -> str:
    if x.dtype != torch.float32:
        return "half"
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def _constants(q: Tensor, dim: int, tile: Tile) -> dict[str, object]:
    precision = _precision(q)
    return {
        "CHANNELS": q.size(2),
        "DIM": dim,
        # Triton's products of matrices need at least 16 channels.
        "WIDTH": max(16, triton.next_power_of_2(q.size(2))),
        "QUERIES": tile.queries,
        "KEYS": tile.keys,
        "PRECISION": "tf32" if precision == "tf32" else "ieee",
        # Triton 3.9 warns if this is not given.
        "enable_fp_fusion": True,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
