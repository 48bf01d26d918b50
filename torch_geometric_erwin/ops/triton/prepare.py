r"""What comes before attention: centred positions, and zeros for rows of no ball.

The forward kernel has no register to spare for either.
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
    r"""One program for a block of rows of one ball.

    Writes positions relative to the first row of their ball, in tree order [DIM, rows].
    Differences are rounded to float32, not their terms: an offset of all positions does
    no harm. Rows behind the last ball, of which each program has a share, become zero
    in the output [rows, columns] and the log-sum [rows, heads].

    No program computes rows of a ball beyond the limit: a ball that has them, which is
    a wrong argument, is NaN in all that is computed of it.
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
