r"""The forward kernel: one program for a block of queries of one head of one ball."""

import triton
import triton.language as tl

from torch_geometric_erwin.ops.triton.rows import (
    ANYWHERE,
    VARYING,
    coordinates,
    distances,
    load_rows,
    rows_at,
    span,
    store_rows,
)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ANYWHERE)
def forward_kernel(
    q,
    k,
    v,
    pos,
    lengths,
    ends,
    sigma,
    perm,
    out,
    lse,
    q_stride,
    q_head,
    k_stride,
    k_head,
    v_stride,
    v_head,
    rows,
    blocks,
    heads,
    scale,
    CHANNELS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    r"""Computes attention by blocks of keys; each block rescales earlier sums."""
    # Programs of all heads of a block are neighbours, because they read the same
    # positions.
    head = (tl.program_id(0) % heads).to(tl.int64)
    part = tl.program_id(0) // heads
    ball = part // blocks
    q += head * q_head
    k += head * k_head
    v += head * v_head
    out += head * CHANNELS
    lse += head

    start, length = span(lengths, ends, ball, rows)
    query = part % blocks * QUERIES + tl.arange(0, QUERIES)
    if part % blocks * QUERIES >= length:
        return
    query_valid = query < length
    query_row = rows_at(perm, start + query, query_valid)
    queries = load_rows(q, query_row, q_stride, query_valid, CHANNELS, WIDTH)
    query_pos = coordinates(pos, rows, start + query, query_valid, DIM)

    # Scores are in units of log 2, because the hardware has an exp2 but no exp.
    slope = tl.load(sigma + head) * LOG2E
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mean = tl.zeros([QUERIES, WIDTH], tl.float32)
    for first in range(0, length, KEYS):
        key = first + tl.arange(0, KEYS)
        valid = key < length
        row = rows_at(perm, start + key, valid)
        keys = load_rows(k, row, k_stride, valid, CHANNELS, WIDTH)
        key_pos = coordinates(pos, rows, start + key, valid, DIM)
        distance = distances(query_pos, key_pos, DIM)
        score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        absent = tl.where(valid, 0.0, float("-inf"))
        score = score * (scale * LOG2E) + (distance * slope + absent[None, :])
        maximum = tl.maximum(largest, tl.max(score, axis=1))
        weight = tl.exp2(score - maximum[:, None])
        shrink = tl.exp2(largest - maximum)
        total = total * shrink + tl.sum(weight, axis=1)
        values = load_rows(v, row, v_stride, valid, CHANNELS, WIDTH)
        mean = tl.dot(
            weight.to(values.dtype),
            values,
            mean * shrink[:, None],
            input_precision=PRECISION,
        )
        largest = maximum
    mean = mean / total[:, None]
    store_rows(out, query_row, heads * CHANNELS, query_valid, mean, CHANNELS)
    tl.store(lse + query_row * heads, largest + tl.log2(total), mask=query_valid)
