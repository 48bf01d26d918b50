r"""Functions that the kernels of message passing share: edges and their values.

A program has ``NODES`` nodes and ``EDGES`` rows of a tile for each. The rows of a node
take its edges in turn, and their sums are added up at the end. So the order of a sum
depends on the order of the edges alone.
"""

import triton
import triton.language as tl

# Like VARYING and ANYWHERE in rows.py: the sizes of a batch, and its tables.
SIZES = ["nodes", "edges"]
TABLES = [
    *("pos", "source", "target"),
    *("target_ptr", "target_order", "source_ptr", "source_order"),
]

# Coefficients of the normal distribution function: Abramowitz and Stegun, formula
# 7.1.26, for the argument |z| / sqrt(2), divided by the density at 0. With rounding the
# error is 2e-7 at most, and that of GELU's derivative 4e-7.
_PLACE = tl.constexpr(0.231641888)
_TAIL_1 = tl.constexpr(0.319381530)
_TAIL_2 = tl.constexpr(-0.356563781)
_TAIL_3 = tl.constexpr(1.781477937)
_TAIL_4 = tl.constexpr(-1.821255979)
_TAIL_5 = tl.constexpr(1.330274430)
_HALF_LOG2E = tl.constexpr(0.721347520)
_LOG2_DENSITY = tl.constexpr(-1.325748065)


@triton.jit
def gelu(z):
    r"""Returns the exact GELU and its derivative, computed with one exponential."""
    density = tl.exp2(z * z * -_HALF_LOG2E + _LOG2_DENSITY)
    t = 1.0 / (tl.abs(z) * _PLACE + 1.0)
    tail = (((t * _TAIL_5 + _TAIL_4) * t + _TAIL_3) * t + _TAIL_2) * t + _TAIL_1
    tail *= t * density
    below = tl.where(z > 0, 1.0 - tail, tail)
    return z * below, z * density + below


@triton.jit
def span_of(ptr, node, nodes, edges):
    r"""Returns where the edges at every node begin and end; none beyond the last node.

    The host checks no value, so the result is limited to edges inside the tensors.
    """
    present = node < nodes
    begin = tl.load(ptr + node, mask=present, other=0)
    end = tl.load(ptr + node + 1, mask=present, other=0)
    return tl.maximum(begin, 0), tl.minimum(end, edges)


@triton.jit
def edge_at(order, ends, place, last, nodes, edges):
    r"""Returns the edges at places of an order, their other ends, and if they exist."""
    valid = place < last
    edge = tl.load(order + place, mask=valid, other=0)
    valid = valid & (edge >= 0) & (edge < edges)
    end = tl.load(ends + edge, mask=valid, other=0)
    return edge, end, valid & (end >= 0) & (end < nodes)


@triton.jit
def load_pos(pos, node, valid, DIM: tl.constexpr):
    r"""Loads positions [nodes, DIM] of some nodes, a vector for each axis."""
    axes = ()
    for axis in tl.static_range(DIM):
        value = tl.load(pos + node * DIM + axis, mask=valid, other=0.0)
        axes += (value,)  # type: ignore[assignment]
    return axes


@triton.jit
def offsets(source, target, DIM: tl.constexpr):
    r"""Computes offsets of sources from targets; only they are rounded to float32."""
    axes = ()
    for axis in tl.static_range(DIM):
        offset = (source[axis] - target[axis]).to(tl.float32)
        axes += (offset,)  # type: ignore[assignment]
    return axes


@triton.jit
def load_weight(weight, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    r"""Loads the columns of the weight [CHANNELS, DIM]."""
    channel = tl.arange(0, WIDTH)
    columns = ()
    for axis in tl.static_range(DIM):
        at = weight + channel * DIM + axis
        column = tl.load(at, mask=channel < CHANNELS, other=0.0)
        columns += (column,)  # type: ignore[assignment]
    return columns


@triton.jit
def load_vector(x, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    r"""Loads a vector over channels, zero beyond them."""
    channel = tl.arange(0, WIDTH)
    return tl.load(x + channel, mask=channel < CHANNELS, other=0.0)


@triton.jit
def argument(rows, offset, weight, DIM: tl.constexpr):
    r"""Computes the argument of GELU: rows of both ends plus the projected offset."""
    for axis in tl.static_range(DIM):
        rows += offset[axis][:, None] * weight[axis][None, :]
    return rows


@triton.jit
def normalise(value, valid, eps, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    r"""Returns rows minus their mean, the mean, and 1 / standard deviation.

    Rows are zero beyond the channels, before and after. The last result is zero for
    rows without an edge, so that their products with it are zero.
    """
    mean = tl.sum(value, axis=1) * (1.0 / CHANNELS)
    centred = value - mean[:, None]
    if WIDTH != CHANNELS:
        channel = tl.arange(0, WIDTH)
        centred = tl.where((channel < CHANNELS)[None, :], centred, 0.0)
    variance = tl.sum(centred * centred, axis=1) * (1.0 / CHANNELS)
    return centred, mean, tl.where(valid, tl.rsqrt(variance + eps), 0.0)


@triton.jit
def sum_edges(tile, NODES: tl.constexpr, EDGES: tl.constexpr):
    r"""Sums up the rows of every node."""
    if EDGES > 1:
        tile = tl.sum(tl.reshape(tile, [NODES, EDGES, tile.shape[1]]), axis=1)
    return tile
