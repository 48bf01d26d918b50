r"""Rows relative to the mean of their segment."""

from typing import Optional

import triton
import triton.language as tl
from torch import Tensor

from torch_geometric_erwin.ops.triton.rows import ANYWHERE, rows_at

_SLOTS = 256  # of a program


def centre(
    x: Tensor, lengths: Tensor, perm: Optional[Tensor], limit: int, dense: bool
) -> tuple[Tensor, Tensor]:
    r"""Offsets and means.

    Args:
        x: The rows, float32 or float64.
        lengths: The rows of every segment.
        perm: The row at every place.
        limit: The largest length.
        dense: Whether offsets are wanted in the dense view, without :obj:`perm`.

    Shapes:
        - **output:** :math:`(N, D)` or :math:`(K, B, D)`, and :math:`(K, D)`.
    """
    (rows, dim), segments = x.shape, lengths.size(0)
    offset = x.new_empty((segments, limit, dim) if dense else (rows, dim))
    mean = x.new_empty(segments, dim)
    if rows == 0 or segments == 0:
        return offset.zero_(), mean.zero_()
    width = min(triton.next_power_of_2(max(limit, 1)), _SLOTS)
    each = _SLOTS // width
    centre_kernel[(triton.cdiv(segments, each),)](
        *(x.contiguous(), lengths, lengths.cumsum(0)),
        *(None if perm is None else perm.contiguous(), offset, mean),
        *(rows, segments, limit),
        DIM=dim,
        SEGMENTS=each,
        WIDTH=width,
        DENSE=dense,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return offset, mean


@triton.jit
def relative(x, perm, start, length, origin, begin, axis, DIM, WIDTH: tl.constexpr):
    r"""Slots of some segments: their rows, which there are, and one axis of them."""
    place = begin + tl.arange(0, WIDTH)[None, :]
    valid = place < length[:, None]
    row = rows_at(perm, start[:, None] + place, valid)
    value = tl.load(x + row * DIM + axis, mask=valid, other=0.0)
    return row, valid, tl.where(valid, value - origin[:, None], 0.0)


@triton.jit(
    do_not_specialize=["rows", "segments", "limit"],
    do_not_specialize_on_alignment=["x", *ANYWHERE],
)
def centre_kernel(
    x,
    lengths,
    ends,
    perm,
    offset,
    mean,
    rows,
    segments,
    limit,
    DIM: tl.constexpr,
    SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr,
    DENSE: tl.constexpr,
):
    r"""One program for some segments, of which it reads WIDTH rows at a time.

    Slots without a row become zero, and so do rows behind the last segment, of which
    each program has a share.
    """
    SLOTS: tl.constexpr = SEGMENTS * WIDTH
    segment = tl.program_id(0).to(tl.int64) * SEGMENTS + tl.arange(0, SEGMENTS)
    present = segment < segments
    length = tl.load(lengths + segment, mask=present, other=0)
    start = tl.maximum(tl.load(ends + segment, mask=present, other=0) - length, 0)
    # No value is checked on the host: a wrong one must not lead out of the tensors.
    length = tl.minimum(length, rows - start)
    some = length > 0
    longest = tl.max(length, axis=0)
    first = rows_at(perm, start, some)
    for axis in tl.static_range(DIM):
        origin = tl.load(x + first * DIM + axis, mask=some, other=0.0)
        about = (x, perm, start, length, origin)
        total = tl.zeros([SEGMENTS], x.dtype.element_ty)
        for begin in range(0, longest, WIDTH):
            _, _, value = relative(*about, begin, axis, DIM, WIDTH)
            total += tl.sum(value, axis=1)
        total /= tl.maximum(length, 1).to(x.dtype.element_ty)
        tl.store(mean + segment * DIM + axis, origin + total, mask=present)
        for begin in range(0, limit if DENSE else longest, WIDTH):
            row, valid, value = relative(*about, begin, axis, DIM, WIDTH)
            value = tl.where(valid, value - total[:, None], 0.0)
            if DENSE:
                slot = begin + tl.arange(0, WIDTH)[None, :]
                row = segment[:, None] * limit + slot
                valid = present[:, None] & (slot < limit)
            tl.store(offset + row * DIM + axis, value, mask=valid)

    if DENSE:
        return
    last = tl.maximum(tl.load(ends + segments - 1), 0)
    step = tl.num_programs(0) * SLOTS
    for begin in range(last + tl.program_id(0) * SLOTS, rows, step):
        place = begin + tl.arange(0, SLOTS)
        row = rows_at(perm, place, place < rows)
        for axis in tl.static_range(DIM):
            tl.store(offset + row * DIM + axis, 0.0, mask=place < rows)
