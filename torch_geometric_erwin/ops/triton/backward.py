r"""The backward kernels of attention, which compute weights again from the saved lse.

:func:`keys_kernel` has one program for a block of keys of one head of one ball. If a
block is a whole ball, it writes all gradients except those of positions. Otherwise
:func:`queries_kernel`, which has one program for a block of queries, writes the
gradients of queries. No two programs add to the same number, so the result does not
depend on the order in which they run.
"""

import triton
import triton.language as tl

from torch_geometric_erwin.ops.triton.forward import LOG2E
from torch_geometric_erwin.ops.triton.rows import (
    ANYWHERE,
    VARYING,
    behind,
    coordinates,
    distances,
    load_rows,
    pulls,
    rows_at,
    span,
    store_rows,
)


@triton.jit
def inverse(distance):
    r"""Returns 1 / distance, and zero for rows at the same place."""
    apart = distance > 0
    return tl.where(apart, 1 / tl.where(apart, distance, 1.0), 0.0)


@triton.jit
def load_queries(
    q,
    grad,
    out,
    perm,
    start,
    query,
    length,
    q_stride,
    grad_stride,
    out_stride,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    r"""Loads a block of queries: row numbers, queries, gradients and outputs."""
    valid = query < length
    row = rows_at(perm, start + query, valid)
    queries = load_rows(q, row, q_stride, valid, CHANNELS, WIDTH)
    grads = load_rows(grad, row, grad_stride, valid, CHANNELS, WIDTH)
    outs = load_rows(out, row, out_stride, valid, CHANNELS, WIDTH)
    return row, queries, grads, outs


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ANYWHERE)
def keys_kernel(
    q,
    k,
    v,
    out,
    grad,
    lse,
    pos,
    lengths,
    ends,
    sigma,
    perm,
    grad_q,
    grad_k,
    grad_v,
    grad_sigma,
    grad_pos,
    q_stride,
    q_head,
    k_stride,
    k_head,
    v_stride,
    v_head,
    grad_stride,
    grad_head,
    rows,
    blocks,
    heads,
    scale,
    CHANNELS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
    AHEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    r"""Computes gradients of k, v, sigma, and of the positions of keys.

    If a block is a whole ball (``WHOLE``), it also computes those of q.
    """
    head = (tl.program_id(0) % heads).to(tl.int64)
    part = tl.program_id(0) // heads
    ball = part // blocks
    q += head * q_head
    k += head * k_head
    v += head * v_head
    grad += head * grad_head
    out += head * CHANNELS
    lse += head
    # One tensor [rows, 3, heads, channels] holds the gradients of q, k and v.
    to_stride = 3 * heads * CHANNELS
    grad_q += head * CHANNELS
    grad_k += head * CHANNELS
    grad_v += head * CHANNELS
    if grad_pos is not None:
        # [rows, of queries and of keys, heads, DIM]
        pos_stride = 2 * heads * DIM
        grad_pos += (heads + head) * DIM
    # Rows behind the last ball have the gradient zero.
    first, step = behind(ends, blocks, heads, KEYS)
    for at in range(first, rows, step):
        place = at + tl.arange(0, KEYS)
        row = rows_at(perm, place, place < rows)
        zeros = tl.zeros([KEYS, WIDTH], tl.float32)
        store_rows(grad_q, row, to_stride, place < rows, zeros, CHANNELS)
        store_rows(grad_k, row, to_stride, place < rows, zeros, CHANNELS)
        store_rows(grad_v, row, to_stride, place < rows, zeros, CHANNELS)
        if grad_pos is not None:
            zeros = tl.zeros([KEYS, triton.next_power_of_2(DIM)], tl.float32)
            store_rows(grad_pos, row, pos_stride, place < rows, zeros, DIM)
            of_queries = grad_pos - heads * DIM
            store_rows(of_queries, row, pos_stride, place < rows, zeros, DIM)

    start, length = span(lengths, ends, ball, rows)
    # Rows of a ball beyond the ball size, a wrong argument, get NaN: see `prepare`.
    for at in range((blocks + part % blocks) * KEYS, length, blocks * KEYS):
        place = at + tl.arange(0, KEYS)
        row = rows_at(perm, start + place, place < length)
        nans = tl.full([KEYS, WIDTH], float("nan"), tl.float32)
        store_rows(grad_k, row, to_stride, place < length, nans, CHANNELS)
        store_rows(grad_v, row, to_stride, place < length, nans, CHANNELS)
        if grad_pos is not None:
            POS: tl.constexpr = triton.next_power_of_2(DIM)
            nans = tl.full([KEYS, POS], float("nan"), tl.float32)
            store_rows(grad_pos, row, pos_stride, place < length, nans, DIM)
    grad_sigma += tl.program_id(0)
    if part % blocks * KEYS >= length:
        tl.store(grad_sigma, 0.0)
        return
    key = part % blocks * KEYS + tl.arange(0, KEYS)
    valid = key < length
    row = rows_at(perm, start + key, valid)
    keys = load_rows(k, row, k_stride, valid, CHANNELS, WIDTH)
    values = load_rows(v, row, v_stride, valid, CHANNELS, WIDTH)
    factor = tl.load(sigma + head)
    key_pos = coordinates(pos, rows, start + key, valid, DIM)
    absent = tl.where(valid, 0.0, float("-inf"))
    sum_k = tl.zeros([KEYS, WIDTH], tl.float32)
    sum_v = tl.zeros([KEYS, WIDTH], tl.float32)
    sum_sigma = tl.zeros([KEYS], tl.float32)
    if grad_pos is not None:
        sum_pos = tl.zeros([KEYS, triton.next_power_of_2(DIM)], tl.float32)
    # With AHEAD, the next block is loaded while the kernel computes with this one.
    block = tl.arange(0, QUERIES)
    ahead = load_queries(
        q,
        grad,
        out,
        perm,
        start,
        block,
        length,
        q_stride,
        grad_stride,
        heads * CHANNELS,
        CHANNELS,
        WIDTH,
    )
    shift: tl.constexpr = QUERIES if AHEAD else 0
    for first in range(0, length, QUERIES):
        query = first + block
        query_valid = query < length
        read = load_queries(
            q,
            grad,
            out,
            perm,
            start,
            query + shift,
            length,
            q_stride,
            grad_stride,
            heads * CHANNELS,
            CHANNELS,
            WIDTH,
        )
        if AHEAD:
            query_row, queries, grads, outs = ahead
            ahead = read
        else:
            query_row, queries, grads, outs = read
        offset = tl.sum(outs.to(tl.float32) * grads.to(tl.float32), axis=1)
        # An infinite log-sum makes the weights of absent queries zero.
        log_sum = tl.load(lse + query_row * heads, mask=query_valid, other=float("inf"))
        # Scores are [keys, queries], so that products that sum over queries need no
        # transposition.
        query_pos = coordinates(pos, rows, start + query, query_valid, DIM)
        distance = distances(key_pos, query_pos, DIM)
        score = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        bias = distance * (factor * LOG2E) + absent[:, None]
        weight = tl.exp2(score * (scale * LOG2E) + bias - log_sum[None, :])
        sum_v = tl.dot(weight.to(grads.dtype), grads, sum_v, input_precision=PRECISION)
        slope = tl.dot(values, tl.trans(grads), input_precision=PRECISION)
        slope = weight * (slope - offset[None, :])
        sum_sigma += tl.sum(slope * distance, axis=1)
        if grad_pos is not None:
            pull = slope * (factor * inverse(distance))
            sum_pos += pulls(pull, key_pos, query_pos, DIM)
        slope = slope.to(queries.dtype)
        sum_k = tl.dot(slope, queries, sum_k, input_precision=PRECISION)
        if WHOLE:
            sum_q = tl.dot(tl.trans(slope), keys, input_precision=PRECISION)
            store_rows(
                grad_q, query_row, to_stride, query_valid, sum_q * scale, CHANNELS
            )
    store_rows(grad_k, row, to_stride, valid, sum_k * scale, CHANNELS)
    store_rows(grad_v, row, to_stride, valid, sum_v, CHANNELS)
    tl.store(grad_sigma, tl.sum(sum_sigma))
    if grad_pos is not None:
        store_rows(grad_pos, row, pos_stride, valid, sum_pos, DIM)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ANYWHERE)
def queries_kernel(
    q,
    k,
    v,
    out,
    grad,
    lse,
    pos,
    lengths,
    ends,
    sigma,
    perm,
    grad_q,
    grad_pos,
    q_stride,
    q_head,
    k_stride,
    k_head,
    v_stride,
    v_head,
    grad_stride,
    grad_head,
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
    r"""Computes gradients of q, and of the positions of queries."""
    head = (tl.program_id(0) % heads).to(tl.int64)
    part = tl.program_id(0) // heads
    ball = part // blocks
    start, length = span(lengths, ends, ball, rows)
    query = part % blocks * QUERIES + tl.arange(0, QUERIES)
    to_stride, pos_stride = 3 * heads * CHANNELS, 2 * heads * DIM
    grad_q += head * CHANNELS
    if grad_pos is not None:
        grad_pos += head * DIM
    for at in range((blocks + part % blocks) * QUERIES, length, blocks * QUERIES):
        place = at + tl.arange(0, QUERIES)
        row = rows_at(perm, start + place, place < length)
        nans = tl.full([QUERIES, WIDTH], float("nan"), tl.float32)
        store_rows(grad_q, row, to_stride, place < length, nans, CHANNELS)
        if grad_pos is not None:
            POS: tl.constexpr = triton.next_power_of_2(DIM)
            nans = tl.full([QUERIES, POS], float("nan"), tl.float32)
            store_rows(grad_pos, row, pos_stride, place < length, nans, DIM)
    if part % blocks * QUERIES >= length:
        return
    q += head * q_head
    k += head * k_head
    v += head * v_head
    grad += head * grad_head
    out += head * CHANNELS
    lse += head
    query_valid = query < length
    query_row = rows_at(perm, start + query, query_valid)
    queries = load_rows(q, query_row, q_stride, query_valid, CHANNELS, WIDTH)
    grads = load_rows(grad, query_row, grad_stride, query_valid, CHANNELS, WIDTH)
    outs = load_rows(out, query_row, heads * CHANNELS, query_valid, CHANNELS, WIDTH)
    offset = tl.sum(outs.to(tl.float32) * grads.to(tl.float32), axis=1)
    log_sum = tl.load(lse + query_row * heads, mask=query_valid, other=float("inf"))
    factor = tl.load(sigma + head)
    query_pos = coordinates(pos, rows, start + query, query_valid, DIM)
    sum_q = tl.zeros([QUERIES, WIDTH], tl.float32)
    if grad_pos is not None:
        sum_pos = tl.zeros([QUERIES, triton.next_power_of_2(DIM)], tl.float32)
    for first in range(0, length, KEYS):
        key = first + tl.arange(0, KEYS)
        valid = key < length
        row = rows_at(perm, start + key, valid)
        keys = load_rows(k, row, k_stride, valid, CHANNELS, WIDTH)
        values = load_rows(v, row, v_stride, valid, CHANNELS, WIDTH)
        key_pos = coordinates(pos, rows, start + key, valid, DIM)
        distance = distances(query_pos, key_pos, DIM)
        score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        absent = tl.where(valid, 0.0, float("-inf"))
        bias = distance * (factor * LOG2E) + absent[None, :]
        weight = tl.exp2(score * (scale * LOG2E) + bias - log_sum[:, None])
        slope = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        slope = weight * (slope - offset[:, None])
        if grad_pos is not None:
            pull = slope * (factor * inverse(distance))
            sum_pos += pulls(pull, query_pos, key_pos, DIM)
        sum_q = tl.dot(slope.to(keys.dtype), keys, sum_q, input_precision=PRECISION)
    store_rows(grad_q, query_row, to_stride, query_valid, sum_q * scale, CHANNELS)
    if grad_pos is not None:
        store_rows(grad_pos, query_row, pos_stride, query_valid, sum_pos, DIM)
