r"""Ball attention by the native kernel for CPUs.

It computes in float32 and does not store scores, so the memory of a step is
:math:`O(N H d)`. A second derivative takes as much memory as the reference backend.
"""

from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin.ops import dispatch
from torch_geometric_erwin.ops.ball_attention.fused import run

__all__ = ["run", "why_not"]

_DTYPES = (torch.float32, torch.bfloat16)


def why_not(q: Tensor, pos: Tensor, *others: Optional[Tensor]) -> str:
    r"""Says why a call is not one in float32 or bfloat16 on a CPU; empty if it is."""
    if q.device.type != "cpu":
        return f"it runs on the CPU (got {q.device.type})"
    if q.dtype not in _DTYPES:
        return f"it serves float32 and bfloat16 (got {q.dtype})"
    return dispatch.why_not(q, pos, *others)
