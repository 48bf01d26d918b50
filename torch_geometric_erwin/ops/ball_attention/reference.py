r"""Ball attention in plain tensor maths: the oracle of the other backends.

Any floating dtype (half precision is computed in float32), differentiable twice and to
positions.
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
    r"""It can serve every call."""
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
    r"""Rows are gathered into tree order, and into the dense view of the balls."""
    q, k, v, pos = in_tree_order(qkv, pos, perm)
    width = dense_width(ball_len, ball_size)
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (
        to_dense(t.to(dtype), ball_len, width).transpose(1, 2) for t in (q, k, v)
    )  # [K, H, B, d]
    distance = pairwise_distance(to_dense(pos.to(dtype), ball_len, width))  # [K, B, B]
    score = scale * q @ k.mT + sigma.to(dtype)[:, None, None] * distance[:, None]
    valid = row_mask(ball_len, width)[:, None, None]  # [K, 1, 1, B]
    # A slot without a row stands at the origin: its score may be the largest.
    score = score.masked_fill(~valid, torch.finfo(dtype).min)
    # An empty ball has no valid key: its weights are zero, not 0 / 0.
    weight = (score - score.amax(-1, keepdim=True).detach()).exp() * valid
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
    out = (weight @ v).transpose(1, 2)
    return in_row_order(from_dense(out, ball_len, pos.size(0)), perm)


def pairwise_distance(pos: Tensor) -> Tensor:
    r"""Distances by direct differences, whose gradient at coincident points is zero.

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
    # The root's slope at zero is infinite: it is masked before the root is taken.
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)
