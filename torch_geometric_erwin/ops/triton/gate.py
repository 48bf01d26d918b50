r"""The gate of a feed-forward layer, and its gradient."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements of a program


def forward(x: Tensor) -> Tensor:
    r"""``SiLU(a) * b`` of rows :math:`(a, b)`.

    Shapes:
        - **x:** :math:`(*, 2H)`; **output:** :math:`(*, H)`.
    """
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], x.size(-1) // 2)
    if out.numel() > 0:
        width = out.size(-1)
        grid, tile = _tiles(out.numel() // width, width)
        forward_kernel[grid](x, out, out.numel() // width, width, **tile)
    return out


def backward(grad: Tensor, x: Tensor) -> Tensor:
    r"""The gradient of :obj:`x`.

    Shapes:
        - **grad:** :math:`(*, H)`; **x** and **output:** :math:`(*, 2H)`.
    """
    grad, x = grad.contiguous(), x.contiguous()
    out = x.new_empty(x.shape)
    if out.numel() > 0:
        width = grad.size(-1)
        grid, tile = _tiles(grad.numel() // width, width)
        backward_kernel[grid](grad, x, out, grad.numel() // width, width, **tile)
    return out


def _tiles(rows: int, width: int) -> tuple[tuple[int], dict[str, Any]]:
    columns = min(triton.next_power_of_2(width), 256)
    each = _TILE // columns
    programs = triton.cdiv(rows, each) * triton.cdiv(width, columns)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return (programs,), {"ROWS": each, "COLUMNS": columns, **options}


@triton.jit
def tile_of(rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r"""Rows, columns and which of them there are, of one program's tile."""
    across = tl.cdiv(width, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    row, column = row[:, None], column[None, :]
    return row, column, (row < rows) & (column < width)


@triton.jit
def load_halves(x, row, column, valid, width):
    r"""Both halves of rows, in float32."""
    at = x + row * (2 * width) + column
    opening = tl.load(at, mask=valid, other=0.0).to(tl.float32)
    return opening, tl.load(at + width, mask=valid, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(x, out, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r"""Rounds once, where PyTorch's two kernels round between them too."""
    row, column, valid = tile_of(rows, width, ROWS, COLUMNS)
    opening, value = load_halves(x, row, column, valid, width)
    result = opening * tl.sigmoid(opening) * value
    tl.store(out + row * width + column, result.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    grad, x, out, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    r"""The derivative of SiLU at a is s(a) (1 + a (1 - s(a)))."""
    row, column, valid = tile_of(rows, width, ROWS, COLUMNS)
    opening, value = load_halves(x, row, column, valid, width)
    weight = tl.load(grad + row * width + column, mask=valid, other=0.0)
    weight = weight.to(tl.float32)
    sigmoid = tl.sigmoid(opening)
    slope = sigmoid * (1.0 + opening * (1.0 - sigmoid))
    at = out + row * (2 * width) + column
    tl.store(at, (weight * value * slope).to(out.dtype.element_ty), mask=valid)
    result = weight * opening * sigmoid
    tl.store(at + width, result.to(out.dtype.element_ty), mask=valid)
