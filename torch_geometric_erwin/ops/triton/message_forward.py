r"""The forward kernel of message passing: one program for a few target nodes."""

import triton
import triton.language as tl

from torch_geometric_erwin.ops.triton.message_rows import (
    SIZES,
    TABLES,
    argument,
    edge_at,
    gelu,
    load_pos,
    load_vector,
    load_weight,
    normalise,
    offsets,
    span_of,
    sum_edges,
)
from torch_geometric_erwin.ops.triton.rows import load_rows, store_rows


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=TABLES)
def forward_kernel(
    source_rows,
    target_rows,
    pos,
    weight,
    norm_weight,
    norm_bias,
    source,
    target_ptr,
    target_order,
    out,
    nodes,
    edges,
    eps,
    CHANNELS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    NODES: tl.constexpr,
    EDGES: tl.constexpr,
):
    r"""Computes the mean message into a few nodes per program.

    The scale and the shift of the normalisation are applied to the mean, not to every
    message, which is the same.
    """
    first = tl.program_id(0).to(tl.int64) * NODES
    row = tl.arange(0, NODES * EDGES)
    node = first + row // EDGES
    begin, end = span_of(target_ptr, node, nodes, edges)
    here = load_pos(pos, node, node < nodes, DIM)
    columns = load_weight(weight, CHANNELS, WIDTH, DIM)
    target = load_rows(target_rows, node, CHANNELS, node < nodes, CHANNELS, WIDTH)
    total = tl.zeros([NODES * EDGES, WIDTH], tl.float32)
    for step in range(0, tl.max(end - begin), EDGES):
        place = begin + step + row % EDGES
        _, other, valid = edge_at(target_order, source, place, end, nodes, edges)
        rows = load_rows(source_rows, other, CHANNELS, valid, CHANNELS, WIDTH)
        offset = offsets(load_pos(pos, other, valid, DIM), here, DIM)
        value, _ = gelu(argument(rows + target, offset, columns, DIM))
        centred, _, inverse = normalise(value, valid, eps, CHANNELS, WIDTH)
        total += centred * inverse[:, None]

    node = first + tl.arange(0, NODES)
    begin, end = span_of(target_ptr, node, nodes, edges)
    degree = tl.maximum(end - begin, 0).to(tl.float32)
    mean = sum_edges(total, NODES, EDGES) / tl.maximum(degree, 1.0)[:, None]
    mean *= load_vector(norm_weight, CHANNELS, WIDTH)[None, :]
    shift = load_vector(norm_bias, CHANNELS, WIDTH)[None, :]
    mean = tl.where((degree > 0)[:, None], mean + shift, 0.0)
    store_rows(out, node, CHANNELS, node < nodes, mean, CHANNELS)
