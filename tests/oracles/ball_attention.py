"""Ball attention from its definition: one query, one head and one key at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor


def distance(a: Tensor, b: Tensor) -> Tensor:
    """The Euclidean distance; its gradient between coincident points is zero."""
    square = (a - b).square().sum()
    return square.sqrt() if square > 0 else torch.zeros_like(square)


def attend(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    distances: Sequence[Tensor],
    sigma: Tensor,
    scale: float,
) -> Tensor:
    """The output of one query of one head."""
    scores = [scale * (q * k).sum() + sigma * r for k, r in zip(keys, distances)]
    largest = max(score.item() for score in scores)
    weights = [(score - largest).exp() for score in scores]
    total = sum(weights)
    return sum(w / total * v for w, v in zip(weights, values))


def ball_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    ball_len: Sequence[int],
    sigma: Tensor,
    perm: Sequence[int] | None = None,
    scale: float | None = None,
) -> Tensor:
    """The output of every row; balls are runs of `perm`."""
    size, heads, width = q.shape
    order = list(range(size)) if perm is None else list(perm)
    scale = width**-0.5 if scale is None else scale
    out, start = torch.zeros_like(q), 0
    for length in ball_len:
        ball = order[start : start + length]
        start += length
        for i in ball:
            distances = [distance(pos[i], pos[j]) for j in ball]
            rows = [
                attend(q[i, h], k[ball, h], v[ball, h], distances, sigma[h], scale)
                for h in range(heads)
            ]
            out = out.index_copy(0, torch.tensor([i]), torch.stack(rows)[None])
    return out
