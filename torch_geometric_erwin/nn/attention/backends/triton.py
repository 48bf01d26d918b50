r"""Ball attention by Triton kernels for CUDA devices.

Distances are computed where they are used and scores are never stored, so the memory of
a step is :math:`O(N H d)`; that of a second derivative is the reference's. Products of
float32 are exact or TF32 as :obj:`torch.backends.cuda.matmul.fp32_precision` says. No
GPU has run the kernels yet: they are tested in Triton's interpreter, and compiled for
compute capability 8.0 and 9.0.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from torch_geometric_erwin.nn.attention.backends.fused import run
from torch_geometric_erwin.utils.checks import is_transformed

__all__ = ["run", "why_not"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CHANNELS = 128


def why_not(q: Tensor, pos: Tensor, differentiable_pos: bool) -> str:
    r"""It serves heads of common sizes on CUDA devices that have tensor cores."""
    if q.device.type != "cuda":
        return f"it runs on CUDA devices (got {q.device.type})"
    if is_transformed():
        return "it has no rule for function transforms and forward-mode derivatives"
    if q.dtype not in _DTYPES:
        return f"it serves float32, bfloat16 and float16 (got {q.dtype})"
    if q.size(-1) > _CHANNELS:
        return f"it serves heads of {_CHANNELS} channels at most (got {q.size(-1)})"
    return _why_not_here(q.device.index)


@torch.compiler.assume_constant_result
def _why_not_here(device: int) -> str:
    # A fact of the machine, which a traced graph may hold.
    if find_spec("triton") is None:
        return "Triton is not installed"
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or major < 8:
        return (
            "it needs an NVIDIA GPU of compute capability 8.0 or more "
            f"(got {torch.cuda.get_device_name(device)}, {major}.{minor})"
        )
    return ""
