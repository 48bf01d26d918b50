r"""Ball attention by the native kernel for CPUs.

It computes in float32 and never holds the scores, so the memory of a step is
:math:`O(N H d)`; that of a second derivative is the reference's.
"""

from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin.ops import dispatch
from torch_geometric_erwin.ops.ball_attention.fused import run

__all__ = ["run", "why_not"]

_DTYPES = (torch.float32, torch.bfloat16)


def why_not(q: Tensor, pos: Tensor, *others: Optional[Tensor]) -> str:
    r"""It computes in float32 on a CPU."""
    if q.device.type != "cpu":
        return f"it runs on the CPU (got {q.device.type})"
    if q.dtype not in _DTYPES:
        return f"it serves float32 and bfloat16 (got {q.dtype})"
    return dispatch.why_not(q, pos, *others)
