"""Erwin in evaluation mode, from its definition: loops over clouds, balls and rows.

Rows are lists of vectors. Weights have the names of the package. The rows of `lin_qkv`
are (q, k, v | head | channel); in the feed-forward layer, those of `lin_in` are
(gate | value).
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import cos, pi, sin
from typing import Any

import numpy as np
import torch
from oracles.ball_attention import attend, distance
from oracles.ball_tree import cloud_tree
from torch import Tensor

Weights = Mapping[str, Tensor]
Rows = list[Tensor]


def part(weights: Weights, name: str) -> dict[str, Tensor]:
    """The weights of a submodule, by their names in it."""
    prefix = f"{name}."
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def runs(lengths: Sequence[int], order: Sequence[int]) -> list[list[int]]:
    """Consecutive runs of `order`."""
    ends = list(accumulate(lengths))
    return [list(order[end - n : end]) for n, end in zip(lengths, ends)]


def mean(rows: Rows) -> Tensor:
    return sum(rows[1:], rows[0]) / len(rows)


def linear(w: Weights, x: Tensor) -> Tensor:
    return w["weight"] @ x + w["bias"] if "bias" in w else w["weight"] @ x


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def layer_norm(w: Weights, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * w["weight"] + w["bias"]


def rms_norm(w: Weights, x: Tensor) -> Tensor:
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt() * w["weight"]


def batch_norm(w: Weights, x: Tensor) -> Tensor:
    """The norm over a batch, with its running statistics."""
    x = (x - w["running_mean"]) / (w["running_var"] + 1e-5).sqrt()
    return x * w["weight"] + w["bias"]


def row_norm(w: Weights, x: Tensor) -> Tensor:
    """The norm of coarsening and refinement; its weights tell which kind it is."""
    return (batch_norm if "running_mean" in w else layer_norm)(w, x)


def swiglu(w: Weights, x: Tensor) -> Tensor:
    hidden = linear(part(w, "lin_in"), x)
    half = len(hidden) // 2
    return linear(part(w, "lin_out"), silu(hidden[:half]) * hidden[half:])


def message_passing(
    w: Weights,
    x: Rows,
    pos: Rows,
    edges: list[list[int]],
    features: Rows | None = None,
) -> Rows:
    """One step along the edges (source, target), with the mean over sources."""
    out = []
    for i in range(len(x)):
        messages = []
        for e, j in [(e, s) for e, (s, target) in enumerate(edges) if target == i]:
            hidden = (
                linear(part(w, "lin_source"), x[j])
                + linear(part(w, "lin_target"), x[i])
                + linear(part(w, "lin_offset"), pos[j] - pos[i])
            )
            if features is not None:
                hidden = hidden + linear(part(w, "lin_edge"), features[e])
            messages.append(layer_norm(part(w, "norm_message"), gelu(hidden)))
        message = mean(messages) if messages else torch.zeros_like(x[i])
        update = linear(part(w, "lin_update"), torch.cat([x[i], message]))
        out.append(x[i] + layer_norm(part(w, "norm_update"), update))
    return out


def attention(
    w: Weights, x: Rows, pos: Rows, balls: list[list[int]], heads: int
) -> Rows:
    """Multi-head attention in balls, with relative positions and a distance bias."""
    out = list(x)
    for ball in balls:
        qkv = {}
        for i in ball:
            offset = pos[i] - mean([pos[j] for j in ball])
            row = x[i] + linear(part(w, "lin_pos"), offset)
            qkv[i] = linear(part(w, "lin_qkv"), row).view(3, heads, -1)
        for i in ball:
            distances = [distance(pos[i], pos[j]) for j in ball]
            parts = []
            for h in range(heads):
                q, keys, values = (
                    qkv[i][0, h],
                    [qkv[j][1, h] for j in ball],
                    [qkv[j][2, h] for j in ball],
                )
                sigma, scale = w["sigma"][h], len(q) ** -0.5
                parts.append(attend(q, keys, values, distances, sigma, scale))
            out[i] = linear(part(w, "lin_out"), torch.cat(parts))
    return out


def block(w: Weights, x: Rows, pos: Rows, balls: list[list[int]], heads: int) -> Rows:
    normed = [rms_norm(part(w, "norm_attention"), row) for row in x]
    attended = attention(part(w, "attention"), normed, pos, balls, heads)
    x = [row + new for row, new in zip(x, attended)]
    return [
        row + swiglu(part(w, "mlp"), rms_norm(part(w, "norm_mlp"), row)) for row in x
    ]


def pool(
    w: Weights, x: Rows, pos: Rows, groups: list[list[int]], stride: int
) -> tuple[Rows, Rows]:
    """Concatenates children's features, then offsets; missing children are zero."""
    pooled, centres = [], []
    for group in groups:
        centre = mean([pos[i] for i in group])
        missing = stride - len(group)
        features = [x[i] for i in group] + [torch.zeros_like(x[0])] * missing
        offsets = [pos[i] - centre for i in group] + [
            torch.zeros_like(centre)
        ] * missing
        row = linear(part(w, "lin"), torch.cat(features + offsets))
        pooled.append(row_norm(part(w, "norm"), row))
        centres.append(centre)
    return pooled, centres


def unpool(
    w: Weights, x: Rows, skip: Rows, pos: Rows, groups: list[list[int]], stride: int
) -> Rows:
    out = list(skip)
    for row, group in zip(x, groups):
        centre = mean([pos[i] for i in group])
        missing = stride - len(group)
        offsets = [pos[i] - centre for i in group] + [
            torch.zeros_like(centre)
        ] * missing
        children = linear(part(w, "lin"), torch.cat([row, *offsets])).view(stride, -1)
        for child, i in enumerate(group):
            out[i] = row_norm(part(w, "norm"), skip[i] + children[child])
    return out


def rotation(degrees: float, dim: int) -> np.ndarray:
    """A matrix to multiply row vectors from the right: a rotation in the plane, or by
    three equal Euler angles."""
    c, s = cos(degrees * pi / 180), sin(degrees * pi / 180)
    if dim == 2:
        return np.array([[c, -s], [s, c]])
    return np.array(
        [
            [c * c, s * c * (s - 1), s * (s + c * c)],
            [s * c, s**3 + c * c, s * c * (s - 1)],
            [-s, s * c, c * c],
        ]
    )


def erwin(
    w: Weights,
    x: Tensor,
    pos: Tensor,
    edge_index: Tensor,
    *,
    ball_sizes: Sequence[int],
    strides: Sequence[int],
    enc_depths: Sequence[int],
    enc_heads: Sequence[int],
    dec_depths: Sequence[int],
    dec_heads: Sequence[int],
    mp_steps: int,
    rotate: float,
    layout: str = "balanced",
    decode: bool = True,
    **_: Any,
) -> Tensor:
    """The output for one cloud."""
    if len(pos) == 0:
        return w["head.2.bias"].new_zeros(0, len(w["head.2.bias"]))
    matrix = rotation(rotate, pos.size(1)) if rotate else None
    tree = cloud_tree(pos.numpy(), ball_sizes, strides, matrix, layout, "index")
    rows = [linear(part(w, "embed.start"), row) for row in x]
    points = list(pos)
    for step in range(mp_steps):
        name = f"embed.convs.{step}"
        rows = message_passing(part(w, name), rows, points, edge_index.T.tolist())
    rows, points = [rows[i] for i in tree.perm], [points[i] for i in tree.perm]

    def stage(name: str, level: int, depth: int, heads: int, rows: Rows) -> Rows:
        main = runs(tree.ball_len[level], range(len(rows)))
        other = runs(tree.ball_len[level], tree.perm_rot[level]) if rotate else main
        for i in range(depth):
            weights = part(w, f"{name}.{level}.blocks.{i}")
            balls = other if i % 2 == 1 else main
            rows = block(weights, rows, points, balls, heads)
        return rows

    skips = []
    for l in range(len(ball_sizes)):
        rows = stage("encoder", l, enc_depths[l], enc_heads[l], rows)
        if l < len(strides):
            groups = runs(tree.group_len[l], range(len(rows)))
            skips.append((rows, points, groups))
            if strides[l] > 1:
                weights = part(w, f"pools.{l}")
                rows, points = pool(weights, rows, points, groups, strides[l])
    if decode:
        for l in reversed(range(len(strides))):
            skip, points, groups = skips[l]
            weights = part(w, f"unpools.{l}")
            rows = unpool(weights, rows, skip, points, groups, strides[l])
            rows = stage("decoder", l, dec_depths[l], dec_heads[l], rows)
        # The output of a point is that of its first row.
        perm = tree.perm.tolist()
        rows = [rows[perm.index(i)] for i in range(len(pos))]
    hidden = [gelu(linear(part(w, "head.0"), row)) for row in rows]
    return torch.stack([linear(part(w, "head.2"), row) for row in hidden])
