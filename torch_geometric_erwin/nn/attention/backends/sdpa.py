r"""Ball attention by :func:`torch.nn.functional.scaled_dot_product_attention`.

The distance bias is its dense mask, so the memory of a step is :math:`O(N B H)`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin.utils.rows import from_dense, row_mask, to_dense


def why_not(q: Tensor, pos: Tensor, differentiable_pos: bool) -> str:
    r"""It is differentiable once, and not to positions."""
    return "it has no gradient to positions" if differentiable_pos else ""


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    width: int,
    scale: float,
) -> Tensor:
    r"""Rows in tree order, :obj:`[N, H, d]` in and out."""
    size = pos.size(0)
    # Distances of half precision are computed in float32, as its cdist is missing.
    dense_pos = to_dense(
        pos.to(torch.promote_types(pos.dtype, torch.float32)), ball_len, width
    )
    # The matrix form, the default above 25 points, cancels far from the origin.
    distance = torch.cdist(
        dense_pos, dense_pos, compute_mode="donot_use_mm_for_euclid_dist"
    )
    bias = sigma[:, None, None] * distance.to(sigma.dtype)[:, None]  # [K, H, B, B]
    # The keys of an empty ball stay: a row without keys would be NaN.
    hidden = ~row_mask(ball_len, width) & (ball_len > 0)[:, None]
    bias = bias.masked_fill(hidden[:, None, None], float("-inf")).to(q.dtype)
    q, k, v = (to_dense(t, ball_len, width).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return from_dense(out.transpose(1, 2), ball_len, size)
