r"""Ball attention by plain tensor operations, with which other backends are compared.

It takes any floating-point dtype (half precision is computed in float32), and can be
differentiated to any order, also with respect to positions.
"""

from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin.ops.ball_attention.rows import (
    QKV,
    in_row_order,
    in_tree_order,
)
from torch_geometric_erwin.utils.rows import (
    dense_width,
    from_dense,
    row_mask,
    to_dense,
)


def why_not(q: Tensor, pos: Tensor, *others: Optional[Tensor]) -> str:
    r"""Returns an empty text, because this backend can serve every call."""
    return ""


def run(
    qkv: QKV,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    perm: Optional[Tensor],
    ball_size: int,
    scale: float,
) -> Tensor:
    r"""Computes attention in the dense view of the balls."""
    q, k, v, pos = in_tree_order(qkv, pos, perm)
    weight = dense_weights(q, k, pos, ball_len, sigma, ball_size, scale)
    v = to_dense(v.to(weight.dtype), ball_len, weight.size(-1)).transpose(1, 2)
    out = (weight @ v).transpose(1, 2)
    return in_row_order(from_dense(out, ball_len, pos.size(0)), perm)


def dense_weights(
    q: Tensor,
    k: Tensor,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    ball_size: int,
    scale: float,
) -> Tensor:
    r"""Computes the weight of every key for every query of its ball, in float32 or
    float64; those of one query sum to one, and slots without a row have none.

    Args:
        q: The queries, balls being consecutive.
        k: The keys.
        pos: The row positions.
        ball_len: The number of rows of every ball.
        sigma: The factor of the distance.
        ball_size: The largest entry that :obj:`ball_len` can have.
        scale: The factor of the scores.

    Shapes:
        - **q, k:** :math:`(N, H, d)`; **pos:** :math:`(N, D)`; **ball_len:**
          :math:`(K)`; **sigma:** :math:`(H)`; **output:** :math:`(K, H, B, B)`, the
          last two for query and key.

    Example:
        >>> q, pos = torch.zeros(2, 1, 4), torch.tensor([[0.0], [1.0]])
        >>> sigma = torch.tensor([-1.0])
        >>> dense_weights(q, q, pos, torch.tensor([2]), sigma, 2, 0.5).flatten()
        tensor([0.7311, 0.2689, 0.2689, 0.7311])
    """
    width = dense_width(ball_len, ball_size)
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k = (
        to_dense(t.to(dtype), ball_len, width).transpose(1, 2) for t in (q, k)
    )  # [K, H, B, d]
    distance = pairwise_distance(to_dense(pos.to(dtype), ball_len, width))  # [K, B, B]
    score = scale * q @ k.mT + sigma.to(dtype)[:, None, None] * distance[:, None]
    valid = row_mask(ball_len, width)[:, None, None]  # [K, 1, 1, B]
    # Slots without a row must not count when the largest score is determined.
    score = score.masked_fill(~valid, torch.finfo(dtype).min)
    # In an empty ball all weights are zero; the clamp avoids 0 / 0.
    weight = (score - score.amax(-1, keepdim=True).detach()).exp() * valid
    return weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)


def pairwise_distance(pos: Tensor) -> Tensor:
    r"""Computes distances, whose gradient is zero for points at the same place.

    Args:
        pos: Positions of every ball.

    Shapes:
        - **pos:** :math:`(K, B, D)`; **output:** :math:`(K, B, B)`.

    Example:
        >>> pairwise_distance(torch.tensor([[[0.0], [3.0]]])).tolist()
        [[[0.0, 3.0], [3.0, 0.0]]]
    """
    square = pos.new_zeros(pos.size(0), pos.size(1), pos.size(1))
    for axis in pos.unbind(-1):
        square = square + (axis[:, :, None] - axis[:, None, :]).square()
    # The gradient of the root is infinite at zero, so zeros are replaced before it.
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)
