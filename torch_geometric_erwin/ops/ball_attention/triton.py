r"""Ball attention by Triton kernels for CUDA devices.

Neither distances nor scores are stored, so the memory of a step is :math:`O(N H d)`. A
second derivative takes as much memory as the reference backend. Products of float32 are
computed in float32 or TF32, as :obj:`torch.backends.cuda.matmul.fp32_precision` says.
No GPU has run the kernels yet: they are tested in Triton's interpreter, and compiled
for compute capability 8.0 and 9.0.
"""

from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin.ops import dispatch
from torch_geometric_erwin.ops import triton as kernels
from torch_geometric_erwin.ops.ball_attention.fused import run

__all__ = ["run", "why_not"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CHANNELS = 128


def why_not(q: Tensor, pos: Tensor, *others: Optional[Tensor]) -> str:
    r"""Says why the kernels cannot serve a call; empty if they can.

    They serve heads of up to 128 channels on CUDA devices that have tensor cores.
    """
    if q.device.type != "cuda":
        return f"it runs on CUDA devices (got {q.device.type})"
    if q.dtype not in _DTYPES:
        return f"it serves float32, bfloat16 and float16 (got {q.dtype})"
    if q.size(-1) > _CHANNELS:
        return f"it serves heads of {_CHANNELS} channels at most (got {q.size(-1)})"
    return dispatch.why_not(q, pos, *others) or kernels.why_not(q.device.index)
