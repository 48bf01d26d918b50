r"""Ball attention by :func:`torch.nn.functional.scaled_dot_product_attention`.

The distance bias is passed as a dense mask, so the memory of a step is
:math:`O(N B H)`.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin.ops.ball_attention.rows import (
    QKV,
    in_row_order,
    in_tree_order,
)
from torch_geometric_erwin.ops.dispatch import is_transformed
from torch_geometric_erwin.utils.onnx import is_onnx_export
from torch_geometric_erwin.utils.rows import (
    dense_width,
    from_dense,
    row_mask,
    to_dense,
)


def why_not(q: Tensor, pos: Tensor, *others: Optional[Tensor]) -> str:
    r"""Says why this backend cannot serve a call; empty if it can.

    It has first derivatives only, and none with respect to positions.
    """
    if is_transformed():
        return "it has no rule for function transforms and forward-mode derivatives"
    if is_onnx_export():
        return "ONNX has no 'cdist'"
    if pos.requires_grad and torch.is_grad_enabled():
        return "it has no gradient to positions"
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
    width = dense_width(ball_len, ball_size)
    # `cdist` does not take half precision.
    dense_pos = to_dense(
        pos.to(torch.promote_types(pos.dtype, torch.float32)), ball_len, width
    )
    # By differences. A matrix product, the default for more than 25 points, is inexact
    # far from the origin.
    distance = torch.cdist(
        dense_pos, dense_pos, compute_mode="donot_use_mm_for_euclid_dist"
    )
    bias = sigma[:, None, None] * distance.to(sigma.dtype)[:, None]  # [K, H, B, B]
    # Keys of empty balls are not masked, because a row without any key would be NaN.
    hidden = ~row_mask(ball_len, width) & (ball_len > 0)[:, None]
    bias = bias.masked_fill(hidden[:, None, None], float("-inf")).to(q.dtype)
    q, k, v = (to_dense(t, ball_len, width).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return in_row_order(from_dense(out.transpose(1, 2), ball_len, pos.size(0)), perm)
