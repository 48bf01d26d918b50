r"""Ball attention by the native kernel for CPUs.

It computes in float32 and never holds the scores, so the memory of a step is
:math:`O(N H d)`; that of a second derivative is the reference's.
"""

from typing import Optional

import torch
from torch import Tensor

import torch_geometric_erwin.ops.ball_attention  # noqa: F401  (registers the operators)
from torch_geometric_erwin.nn.attention.backends.rows import QKV
from torch_geometric_erwin.utils.checks import is_transformed

_DTYPES = (torch.float32, torch.bfloat16)


def why_not(q: Tensor, pos: Tensor, differentiable_pos: bool) -> str:
    r"""It computes in float32 on a CPU."""
    if q.device.type != "cpu":
        return f"it runs on the CPU (got {q.device.type})"
    if is_transformed():
        return "it has no rule for function transforms and forward-mode derivatives"
    if q.dtype not in _DTYPES:
        return f"it serves float32 and bfloat16 (got {q.dtype})"
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
    r"""Rows are read through :obj:`perm`, and from where the projection wrote them."""
    # The kernel takes differences of float64 positions before it rounds them.
    pos = pos.to(torch.promote_types(pos.dtype, torch.float32))
    args = (pos, ball_len, sigma.float(), perm, scale)
    if isinstance(qkv, Tensor):
        return torch.ops.erwin.ball_attention_packed(qkv, *args)[0]
    return torch.ops.erwin.ball_attention(*qkv, *args)[0]
