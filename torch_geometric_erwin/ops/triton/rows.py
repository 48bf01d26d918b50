r"""What the kernels share: rows of a ball, and their distances."""

import triton
import triton.language as tl

# Arguments whose every value runs the same code: numbers that differ from batch to
# batch, and tables that may begin anywhere in a larger tensor. A kernel compiled for
# each kind of value would be compiled in the middle of a run, or of a recording.
VARYING = ["rows", "balls", "blocks"]
ANYWHERE = ["lengths", "ends", "perm"]


@triton.jit
def span(lengths, ends, ball, rows):
    r"""Where a ball starts, and how many rows it has.

    No value is checked on the host: a wrong length must not lead out of the tensors.
    """
    length = tl.load(lengths + ball).to(tl.int32)
    start = tl.maximum(tl.load(ends + ball).to(tl.int32) - length, 0)
    return start, tl.minimum(length, rows - start)


@triton.jit
def rows_at(perm, place, valid):
    r"""The rows at places of the tree order."""
    # Behind a `return` in an `if` the compiler goes on; the interpreter does not.
    if perm is None:
        row = place.to(tl.int64)
    else:
        row = tl.load(perm + place, mask=valid, other=0)
    return row


@triton.jit
def load_rows(x, row, stride, valid, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    r"""A tile [rows, WIDTH], zero in rows that are not valid and beyond the channels.

    Zero and not any number: a product with weight zero must not be NaN.
    """
    channel = tl.arange(0, WIDTH)
    mask = valid[:, None]
    if WIDTH != CHANNELS:
        mask = mask & (channel < CHANNELS)[None, :]
    return tl.load(x + row[:, None] * stride + channel[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x, row, stride, valid, tile, CHANNELS: tl.constexpr):
    r"""Writes the valid rows of a tile, rounded to the tensor's dtype."""
    WIDTH: tl.constexpr = tile.shape[1]
    channel = tl.arange(0, WIDTH)
    mask = valid[:, None]
    if WIDTH != CHANNELS:
        mask = mask & (channel < CHANNELS)[None, :]
    at = x + row[:, None] * stride + channel[None, :]
    tl.store(at, tile.to(x.dtype.element_ty), mask=mask)


@triton.jit
def behind(ends, blocks, heads, BLOCK: tl.constexpr):
    r"""A program's share of the rows behind the last ball: the first place, and the
    step between blocks. The programs of one head share them.
    """
    parts = tl.num_programs(0) // heads
    last = tl.load(ends + parts // blocks - 1).to(tl.int32)
    return tl.maximum(last, 0) + tl.program_id(0) // heads * BLOCK, parts * BLOCK


@triton.jit
def coordinates(pos, rows, place, valid, DIM: tl.constexpr):
    r"""Positions [DIM, rows] at places, one vector an axis; absent ones are zero."""
    axes = ()
    for axis in tl.static_range(DIM):
        value = tl.load(pos + axis * rows + place, mask=valid, other=0.0)
        axes += (value,)  # type: ignore[assignment]
    return axes


@triton.jit
def distances(here, there, DIM: tl.constexpr):
    r"""Between every row here and every row there, by direct differences."""
    offset = here[0][:, None] - there[0][None, :]
    square = offset * offset
    for axis in tl.static_range(1, DIM):
        offset = here[axis][:, None] - there[axis][None, :]
        square += offset * offset
    return tl.sqrt(square)


@triton.jit
def pulls(weight, here, there, DIM: tl.constexpr):
    r"""The sum over rows there of weight times offset: a tile [rows here, >= DIM]."""
    WIDTH: tl.constexpr = triton.next_power_of_2(DIM)
    column = tl.arange(0, WIDTH)
    total = tl.zeros([weight.shape[0], WIDTH], tl.float32)
    for axis in tl.static_range(DIM):
        offset = here[axis][:, None] - there[axis][None, :]
        pull = tl.sum(weight * offset, axis=1)
        total += tl.where((column == axis)[None, :], pull[:, None], 0.0)
    return total
