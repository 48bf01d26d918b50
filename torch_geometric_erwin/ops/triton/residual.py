r"""Sums of rows, and what follows them."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements of a program
_PROGRAMS = 512  # of a gradient, whose parts of the weight's are added up after


def add_norm(
    x: Tensor, y: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The sum in float32, its norm, and the scale of every row.

    Shapes:
        - **output:** :math:`(N, C)`, :math:`(N, C)` and :math:`(N)`.
    """
    x, y, weight = x.contiguous(), y.contiguous(), weight.contiguous()
    rows, channels = x.shape
    total, out = x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype)
    scale = x.new_empty(rows)
    if x.numel() > 0:
        tile = _tile(channels)
        add_norm_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x, y, weight, total, out, scale, rows, eps, **tile
        )
    return total, out, scale


def add_norm_backward(
    grad_total: Tensor, grad: Tensor, total: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The gradient of both terms, and that of the weight.

    Shapes:
        - **output:** :math:`(N, C)` and :math:`(C)`.
    """
    grad_total, grad = grad_total.contiguous(), grad.contiguous()
    rows, channels = total.shape
    out = total.new_empty(total.shape)
    if total.numel() == 0:
        return out, torch.zeros_like(weight)
    tile = _tile(channels, _TILE // 2)  # it holds more per element
    steps = triton.cdiv(rows, tile["ROWS"] * _PROGRAMS)
    programs = triton.cdiv(rows, tile["ROWS"] * steps)
    parts = total.new_empty(programs, channels)
    add_norm_backward_kernel[(programs,)](
        *(grad_total, grad, total, scale, weight.contiguous(), out, parts),
        *(rows, steps),
        **tile,
    )
    return out, parts.sum(0).to(weight.dtype)


def add_linear(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    r"""The sum.

    Shapes:
        - **output:** :math:`(N, C)`.
    """
    (rows, channels), dim = x.shape, y.size(1)
    x, y, weight, bias = (t.contiguous() for t in (x, y, weight, bias))
    out = x.new_empty(x.shape, dtype=dtype)
    if x.numel() > 0:
        tile = _tile(channels)
        add_linear_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x, y, weight, bias, out, rows, DIM=dim, **tile
        )
    return out


def _tile(channels: int, size: int = _TILE) -> dict[str, Any]:
    width = triton.next_power_of_2(channels)
    return {
        "CHANNELS": channels,
        "WIDTH": width,
        "ROWS": max(1, size // width),
        "num_warps": 4,
        "enable_fp_fusion": True,
    }


@triton.jit
def elements(
    first, rows, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    r"""Rows from a first one, their elements, and which of both there are."""
    row = first.to(tl.int64) + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)[None, :]
    valid = (row < rows)[:, None]
    if WIDTH != CHANNELS:
        valid = valid & (channel < CHANNELS)
    return row, row[:, None] * CHANNELS + channel, valid


@triton.jit
def load(x, at, valid):
    r"""A tile in float32."""
    return tl.load(x + at, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def load_vector(
    x, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, stride: tl.constexpr = 1
):
    r"""One number a channel, in float32."""
    channel = tl.arange(0, WIDTH)
    value = tl.load(x + channel * stride, mask=channel < CHANNELS, other=0.0)
    return value.to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["rows"])
def add_norm_kernel(
    x,
    y,
    weight,
    total,
    out,
    scale,
    rows,
    eps,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    r"""One program for a tile of whole rows."""
    row, at, valid = elements(tl.program_id(0) * ROWS, rows, CHANNELS, WIDTH, ROWS)
    value = load(x, at, valid) + load(y, at, valid)
    tl.store(total + at, value, mask=valid)
    square = tl.sum(value * value, axis=1) * (1.0 / CHANNELS)
    factor = tl.rsqrt(square + eps)
    tl.store(scale + row, factor, mask=row < rows)
    value *= factor[:, None] * load_vector(weight, CHANNELS, WIDTH)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["rows", "steps"])
def add_norm_backward_kernel(
    grad_total,
    grad,
    total,
    scale,
    weight,
    out,
    parts,
    rows,
    steps,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    r"""One program for several tiles, whose parts of the weight's gradient it sums."""
    factor = load_vector(weight, CHANNELS, WIDTH)
    part = tl.zeros([ROWS, WIDTH], tl.float32)
    for step in range(steps):
        first = (tl.program_id(0) * steps + step) * ROWS
        row, at, valid = elements(first, rows, CHANNELS, WIDTH, ROWS)
        each = tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
        unit = load(total, at, valid) * each
        weighted = load(grad, at, valid)
        part += weighted * unit
        weighted *= factor
        along = tl.sum(weighted * unit, axis=1)[:, None] * (1.0 / CHANNELS)
        value = load(grad_total, at, valid) + each * (weighted - unit * along)
        tl.store(out + at, value, mask=valid)
    channel = tl.arange(0, WIDTH)
    at = parts + tl.program_id(0) * CHANNELS + channel
    tl.store(at, tl.sum(part, axis=0), mask=channel < CHANNELS)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["y"])
def add_linear_kernel(
    x,
    y,
    weight,
    bias,
    out,
    rows,
    CHANNELS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    r"""One program for a tile of whole rows."""
    row, at, valid = elements(tl.program_id(0) * ROWS, rows, CHANNELS, WIDTH, ROWS)
    value = load(x, at, valid) + load_vector(bias, CHANNELS, WIDTH)
    for axis in tl.static_range(DIM):
        column = tl.load(y + row * DIM + axis, mask=row < rows, other=0.0)
        slope = load_vector(weight + axis, CHANNELS, WIDTH, DIM)
        value += column.to(tl.float32)[:, None] * slope
    tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)
