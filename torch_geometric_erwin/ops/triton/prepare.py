r"""The kernel before attention: it centres positions, and zeros rows of no ball.

It is separate because the forward kernel has no registers left for this.
"""

import triton
import triton.language as tl

from torch_geometric_erwin.ops.triton.rows import (
    ANYWHERE,
    VARYING,
    behind,
    rows_at,
    span,
)


@triton.jit
def fill(x, row, valid, columns, value):
    r"""Writes a number to rows of a contiguous tensor [rows, columns]."""
    BLOCK: tl.constexpr = 64
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        at = x + row[:, None] * columns + column
        tile = tl.full([row.shape[0], BLOCK], value, x.dtype.element_ty)
        tl.store(at, tile, mask=valid[:, None] & (column < columns))


@triton.jit(
    do_not_specialize=[*VARYING, "limit"],
    do_not_specialize_on_alignment=["pos", *ANYWHERE],
)
def prepare_kernel(
    pos,
    lengths,
    ends,
    perm,
    centred,
    out,
    lse,
    rows,
    blocks,
    heads,
    columns,
    limit,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r"""Prepares a block of rows of one ball per program.

    It writes positions relative to the first row of their ball, in tree order
    [DIM, rows]. Only the differences are rounded to float32, so an offset of all
    positions costs no accuracy. Each program also writes zeros to its share of the rows
    behind the last ball, in the output [rows, columns] and the log-sum [rows, heads].

    If a ball has more rows than the limit, which is a wrong argument, NaN is written to
    those beyond it, so that all results of the ball become NaN.
    """
    start, length = span(lengths, ends, tl.program_id(0) // blocks, rows)
    block = tl.program_id(0) % blocks
    place = block * BLOCK + tl.arange(0, BLOCK)
    valid = place < tl.minimum(length, limit)
    row = rows_at(perm, start + place, valid)
    origin = rows_at(perm, start + place * 0, valid)
    for axis in tl.static_range(DIM):
        offset = tl.load(pos + row * DIM + axis, mask=valid)
        offset -= tl.load(pos + origin * DIM + axis, mask=valid)
        at = centred + axis * rows + start + place
        tl.store(at, offset.to(tl.float32), mask=valid)

    for first in range(limit + block * BLOCK, length, blocks * BLOCK):
        place = first + tl.arange(0, BLOCK)
        valid = place < length
        row = rows_at(perm, start + place, valid)
        fill(out, row, valid, columns, float("nan"))
        fill(lse, row, valid, heads, float("nan"))
        for axis in tl.static_range(DIM):
            at = centred + axis * rows + start + place
            tl.store(at, float("nan"), mask=valid)

    first, step = behind(ends, blocks, 1, BLOCK)
    for at in range(first, rows, step):
        place = at + tl.arange(0, BLOCK)
        valid = place < rows
        row = rows_at(perm, place, valid)
        fill(out, row, valid, columns, 0.0)
        fill(lse, row, valid, heads, 0.0)
