r"""Launches the kernels of message passing: checks nothing, and reads no value from the
device.

Grids depend on shapes alone, so that a CUDA graph may replay them for other edges.
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
    r"""Nodes of a program, edges of each that it takes at a time, warps."""

    nodes: int
    edges: int
    warps: int


def tile_of(channels: int, backward: bool) -> Tile:
    r"""The tile of a kernel: written down, and not searched for at run time.

    A thread holds four numbers of a tile, of which the kernel over targets has a dozen
    at a time: compiled, twice as many cost the same instructions a number and half the
    warps in flight. A node takes several edges at a time, lest the one with the most
    in a tile keep the others waiting; fewer in backward kernels, whose programs write
    their share of the weights' gradients. No GPU has timed it yet.

    Args:
        channels: The channels of a row.
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
    r"""The mean message into every node.

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
    r"""The gradients of source rows, target rows, weight, norm weight and norm bias."""
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
    # What every program adds, summed below in an order that depends on sizes alone.
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
        # Triton 3.9 warns where this is left open.
        "enable_fp_fusion": True,
        "num_warps": tile.warps,
    }
