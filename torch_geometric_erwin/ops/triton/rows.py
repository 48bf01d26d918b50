r"""Functions that the kernels share: reading the rows of a ball, and distances."""

import triton
import triton.language as tl

# Arguments for which Triton must not compile special kernels: numbers that differ from
# batch to batch, and tables that may begin anywhere in a larger tensor. Otherwise it
# would compile in the middle of a training run, or while a CUDA graph is recorded.
VARYING = ["rows", "balls", "blocks"]
ANYWHERE = ["lengths", "ends", "perm"]


@triton.jit
def span(lengths, ends, ball, rows):
    r"""Returns where a ball starts, and how many rows it has.

    The host checks no value, so the result is limited to rows inside the tensors.
    """
    length = tl.load(lengths + ball).to(tl.int32)
    start = tl.maximum(tl.load(ends + ball).to(tl.int32) - length, 0)
    return start, tl.minimum(length, rows - start)


@triton.jit
def rows_at(perm, place, valid):
    r"""Returns the rows at places of the tree order."""
    # Without an early `return`, which Triton's compiler and interpreter treat
    # differently.
    if perm is None:
        row = place.to(tl.int64)
    else:
        row = tl.load(perm + place, mask=valid, other=0)
    return row


@triton.jit
def load_rows(x, row, stride, valid, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    r"""Loads a tile [rows, WIDTH], zero in invalid rows and beyond the channels.

    It is zero and not any number there, so that a product with weight zero is not NaN.
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
    r"""Returns a program's share of the rows behind the last ball.

    These rows are divided into blocks, which the programs of one head take in turn. The
    result is the first place of the program, and the step to the next ones.
    """
    parts = tl.num_programs(0) // heads
    last = tl.load(ends + parts // blocks - 1).to(tl.int32)
    return tl.maximum(last, 0) + tl.program_id(0) // heads * BLOCK, parts * BLOCK


@triton.jit
def coordinates(pos, rows, place, valid, DIM: tl.constexpr):
    r"""Loads positions [DIM, rows] at places, a vector per axis; zero if invalid."""
    axes = ()
    for axis in tl.static_range(DIM):
        value = tl.load(pos + axis * rows + place, mask=valid, other=0.0)
        axes += (value,)  # type: ignore[assignment]
    return axes


@triton.jit
def distances(here, there, DIM: tl.constexpr):
    r"""Computes the distance between every row here and every row there."""
    offset = here[0][:, None] - there[0][None, :]
    square = offset * offset
    for axis in tl.static_range(1, DIM):
        offset = here[axis][:, None] - there[axis][None, :]
        square += offset * offset
    return tl.sqrt(square)


@triton.jit
def pulls(weight, here, there, DIM: tl.constexpr):
    r"""Sums weight times offset over the rows there: a tile [rows here, >= DIM]."""
    WIDTH: tl.constexpr = triton.next_power_of_2(DIM)
    column = tl.arange(0, WIDTH)
    total = tl.zeros([weight.shape[0], WIDTH], tl.float32)
    for axis in tl.static_range(DIM):
        offset = here[axis][:, None] - there[axis][None, :]
        pull = tl.sum(weight * offset, axis=1)
        total += tl.where((column == axis)[None, :], pull[:, None], 0.0)
    return total
