r"""Launching the kernels of message passing, without checks and without reading the
device.

Grids depend on shapes alone, so that a CUDA graph can be replayed for other edges.
"""

from typing import NamedTuple, Optional

import torch
import triton
from torch import Tensor

from torch_geometric_erwin.ops.triton.message_backward import (
    source_kernel,
    target_kernel,
)
from torch_geometric_erwin.ops.triton.message_forward import forward_kernel


class Tile(NamedTuple):
    r"""The nodes of a program, the edges per node that it takes at once, and warps."""

    nodes: int
    edges: int
    warps: int


def tile_of(channels: int, backward: bool) -> Tile:
    r"""Returns the tile of a kernel, by a rule and not by a search at run time.

    A thread holds four numbers of a tile, and the kernel over targets has a dozen tiles
    in registers at a time. With twice as many numbers, the compiled kernel would need
    as many instructions per number, but only half as many warps could run at once. A
    program takes several edges of a node at a time, because it needs as many steps as
    the node with the most edges. It takes fewer, and so more nodes, in backward
    kernels, because each program there writes its part of the weights' gradients. No
    GPU has timed the tiles yet.

    Args:
        channels: The number of channels of a row.
        backward: Whether it is a backward kernel.

    Example:
        >>> tile_of(64, backward=True)
        Tile(nodes=4, edges=2, warps=4)
        >>> tile_of(300, backward=False)
        Tile(nodes=1, edges=4, warps=16)
    """
    width = _width(channels)
    rows = min(max(8, 512 // width), max(1, 2048 // width))
    edges = min(2 if backward else 4, rows)
    return Tile(rows // edges, edges, min(32, max(4, rows * width // 128)))


def forward(
    source_rows: Tensor,
    target_rows: Tensor,
    pos: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    source: Tensor,
    target: Tensor,
    target_ptr: Tensor,
    target_order: Tensor,
    source_ptr: Optional[Tensor],
    source_order: Optional[Tensor],
) -> Tensor:
    r"""Returns the mean message into every node.

    Shapes:
        - **output:** :math:`(N, C)`.
    """
    nodes = target_rows.size(0)
    out = target_rows.new_empty(target_rows.shape)
    if out.numel() == 0:
        return out
    rows = (source_rows, target_rows, pos, weight, norm_weight, norm_bias)
    read = [t.contiguous() for t in (*rows, source, target_ptr, target_order)]
    constants = _constants(weight, backward=False)
    forward_kernel[(triton.cdiv(nodes, constants["NODES"]),)](
        *(*read, out, nodes, source.size(0), eps), **constants
    )
    return out


def backward(
    source_rows: Tensor,
    target_rows: Tensor,
    pos: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    source: Tensor,
    target: Tensor,
    target_ptr: Tensor,
    target_order: Tensor,
    source_ptr: Tensor,
    source_order: Tensor,
    grad: Tensor,
) -> tuple[Tensor, ...]:
    r"""Returns gradients of source rows, target rows, weight, norm weight and bias."""
    nodes, channels = target_rows.shape
    edges, dim = source.size(0), pos.size(1)
    grad_source, grad_target = grad.new_empty(grad.shape), grad.new_empty(grad.shape)
    if grad.numel() == 0:
        zeros = (t.new_zeros(t.shape) for t in (weight, norm_weight, norm_bias))
        return grad_source, grad_target, *zeros
    rows = (grad, source_rows, target_rows, pos, weight, norm_weight)
    read = [t.contiguous() for t in rows]
    into = [t.contiguous() for t in (source, target_ptr, target_order)]
    out_of = [t.contiguous() for t in (target, source_ptr, source_order)]
    slopes = grad.new_empty(edges, 4)
    constants = _constants(weight, backward=True)
    programs = triton.cdiv(nodes, constants["NODES"])
    # Every program writes its own part of these gradients. The parts are summed up
    # below, in an order that depends on sizes alone.
    parts = grad.new_empty(programs, dim + 2, channels)
    target_kernel[(programs,)](
        *(*read, *into, slopes, grad_target, parts, nodes, edges, eps), **constants
    )
    source_kernel[(programs,)](
        *(*read, *out_of, slopes, grad_source, nodes, edges), **constants
    )
    *columns, scale, shift = parts.sum(0, dtype=torch.float64).to(grad.dtype)
    return grad_source, grad_target, torch.stack(columns, 1), scale, shift.clone()


def _width(channels: int) -> int:
    return max(16, triton.next_power_of_2(channels))


def _constants(weight: Tensor, backward: bool) -> dict[str, int]:
    channels, dim = weight.shape
    tile = tile_of(channels, backward)
    return {
        "CHANNELS": channels,
        "DIM": dim,
        "WIDTH": _width(channels),
        "NODES": tile.nodes,
        "EDGES": tile.edges,
        # Triton 3.9 warns if this is not given.
        "enable_fp_fusion": True,
        "num_warps": tile.warps,
    }
