r"""The backward kernels of message passing, which compute the messages again.

:func:`target_kernel` goes over the edges into nodes and stores four numbers per edge.
With them :func:`source_kernel`, which goes over the edges out of nodes, needs no sum
over channels. No two programs add to the same number, so the result does not depend on
the order in which they run.
"""

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
def target_kernel(
    grad,
    source_rows,
    target_rows,
    pos,
    weight,
    norm_weight,
    source,
    target_ptr,
    target_order,
    slopes,
    grad_target,
    parts,
    nodes,
    edges,
    eps,
    CHANNELS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    NODES: tl.constexpr,
    EDGES: tl.constexpr,
):
    r"""Computes gradients of target rows, and parts of the gradients of parameters.

    The parts are those of the weight's columns, and of the norm's scale and shift:
    [programs, DIM + 2, CHANNELS].

    If h is the gradient of the output at the target node and w the norm's scale, the
    gradient of GELU's value g at one edge is ``a h w + b (g - mean) + c``. The numbers
    a, b, c, mean are stored as slopes [edges, 4].
    """
    first = tl.program_id(0).to(tl.int64) * NODES
    row = tl.arange(0, NODES * EDGES)
    channel = tl.arange(0, WIDTH)
    node = first + row // EDGES
    begin, end = span_of(target_ptr, node, nodes, edges)
    present = begin < end
    share = 1.0 / tl.maximum(end - begin, 1).to(tl.float32)
    here = load_pos(pos, node, present, DIM)
    columns = load_weight(weight, CHANNELS, WIDTH, DIM)
    target = load_rows(target_rows, node, CHANNELS, present, CHANNELS, WIDTH)
    # The gradient of the normalised value, the same for all edges into a node.
    push = load_rows(grad, node, CHANNELS, present, CHANNELS, WIDTH)
    push *= share[:, None] * load_vector(norm_weight, CHANNELS, WIDTH)[None, :]
    mean_push = tl.sum(push, axis=1) * (1.0 / CHANNELS)
    total = tl.zeros([NODES * EDGES, WIDTH], tl.float32)
    normalised = tl.zeros([NODES * EDGES, WIDTH], tl.float32)
    sums = ()
    for _ in tl.static_range(DIM):
        zeros = tl.zeros([NODES * EDGES, WIDTH], tl.float32)
        sums += (zeros,)  # type: ignore[assignment]
    for step in range(0, tl.max(end - begin), EDGES):
        place = begin + step + row % EDGES
        edge, other, valid = edge_at(target_order, source, place, end, nodes, edges)
        rows = load_rows(source_rows, other, CHANNELS, valid, CHANNELS, WIDTH)
        offset = offsets(load_pos(pos, other, valid, DIM), here, DIM)
        value, slope = gelu(argument(rows + target, offset, columns, DIM))
        centred, mean, inverse = normalise(value, valid, eps, CHANNELS, WIDTH)
        normalised += centred * inverse[:, None]
        along = tl.sum(centred * push, axis=1) * (1.0 / CHANNELS)
        b = -inverse * inverse * inverse * along
        c = -inverse * mean_push
        pull = push * inverse[:, None] + centred * b[:, None] + c[:, None]
        pull *= slope
        total += pull
        added = ()
        for axis in tl.static_range(DIM):
            term = sums[axis] + pull * offset[axis][:, None]
            added += (term,)  # type: ignore[assignment]
        sums = added
        # The four numbers are put into the first channels of a tile, so that one store
        # writes them.
        kept = tl.where((channel == 2)[None, :], c[:, None], mean[:, None])
        kept = tl.where((channel == 1)[None, :], b[:, None], kept)
        kept = tl.where((channel == 0)[None, :], (inverse * share)[:, None], kept)
        store_rows(slopes, edge, 4, valid, kept, 4)

    push = load_rows(grad, node, CHANNELS, present, CHANNELS, WIDTH)
    normalised *= push * share[:, None]
    push = tl.where((row % EDGES == 0)[:, None], push, 0.0)
    parts += tl.program_id(0).to(tl.int64) * (DIM + 2) * CHANNELS + channel
    inside = channel < CHANNELS
    for axis in tl.static_range(DIM):
        tl.store(parts + axis * CHANNELS, tl.sum(sums[axis], axis=0), mask=inside)
    tl.store(parts + DIM * CHANNELS, tl.sum(normalised, axis=0), mask=inside)
    tl.store(parts + (DIM + 1) * CHANNELS, tl.sum(push, axis=0), mask=inside)
    node = first + tl.arange(0, NODES)
    total = sum_edges(total, NODES, EDGES)
    store_rows(grad_target, node, CHANNELS, node < nodes, total, CHANNELS)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=TABLES)
def source_kernel(
    grad,
    source_rows,
    target_rows,
    pos,
    weight,
    norm_weight,
    target,
    source_ptr,
    source_order,
    slopes,
    grad_source,
    nodes,
    edges,
    CHANNELS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    NODES: tl.constexpr,
    EDGES: tl.constexpr,
):
    r"""Computes gradients of source rows, with slopes of :func:`target_kernel`."""
    first = tl.program_id(0).to(tl.int64) * NODES
    row = tl.arange(0, NODES * EDGES)
    node = first + row // EDGES
    begin, end = span_of(source_ptr, node, nodes, edges)
    columns = load_weight(weight, CHANNELS, WIDTH, DIM)
    scale = load_vector(norm_weight, CHANNELS, WIDTH)[None, :]
    # Rows of nodes without edges are not loaded, in case they are not finite.
    here = load_pos(pos, node, begin < end, DIM)
    source = load_rows(source_rows, node, CHANNELS, begin < end, CHANNELS, WIDTH)
    total = tl.zeros([NODES * EDGES, WIDTH], tl.float32)
    for step in range(0, tl.max(end - begin), EDGES):
        place = begin + step + row % EDGES
        edge, other, valid = edge_at(source_order, target, place, end, nodes, edges)
        rows = load_rows(target_rows, other, CHANNELS, valid, CHANNELS, WIDTH)
        push = load_rows(grad, other, CHANNELS, valid, CHANNELS, WIDTH)
        offset = offsets(here, load_pos(pos, other, valid, DIM), DIM)
        value, slope = gelu(argument(rows + source, offset, columns, DIM))
        a = tl.load(slopes + 4 * edge, mask=valid, other=0.0)
        b = tl.load(slopes + 4 * edge + 1, mask=valid, other=0.0)
        c = tl.load(slopes + 4 * edge + 2, mask=valid, other=0.0)
        mean = tl.load(slopes + 4 * edge + 3, mask=valid, other=0.0)
        centred = value - mean[:, None]
        pull = push * scale * a[:, None] + centred * b[:, None] + c[:, None]
        total += pull * slope
    node = first + tl.arange(0, NODES)
    total = sum_edges(total, NODES, EDGES)
    store_rows(grad_source, node, CHANNELS, node < nodes, total, CHANNELS)
