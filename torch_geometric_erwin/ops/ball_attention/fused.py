r"""The call of the operator, which the native and the Triton backend share."""

from typing import Optional

import torch
from torch import Tensor

import torch_geometric_erwin.ops.ball_attention.operator  # noqa: F401  (registers the operators)
from torch_geometric_erwin.ops.ball_attention.rows import QKV


def run(
    qkv: QKV,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    perm: Optional[Tensor],
    ball_size: int,
    scale: float,
) -> Tensor:
    r"""Runs the operator, whose kernels read rows in any order without a copy."""
    # Positions of float64 stay float64: the kernels round only their differences.
    pos = pos.to(torch.promote_types(pos.dtype, torch.float32))
    args = (pos, ball_len, sigma.float(), perm, ball_size, scale)
    if isinstance(qkv, Tensor):
        return torch.ops.erwin.ball_attention_packed(qkv, *args)[0]
    return torch.ops.erwin.ball_attention(*qkv, *args)[0]
