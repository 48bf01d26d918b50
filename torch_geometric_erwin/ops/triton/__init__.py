r"""What the operators do on CUDA devices but for trees and neighbours, in Triton.

The modules of this folder are imported when an operator gets its first CUDA tensor: the
package does not need Triton.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Optional

import torch
from torch import Tensor

from torch_geometric_erwin.ops import dispatch

# Elements below which a kernel that is launched from Python takes longer than the few
# of PyTorch whose place it takes: 20 µs on the host against 7, counted on a CPU.
SMALL = 1 << 20


@torch.compiler.assume_constant_result
def why_not(device: int) -> str:
    r"""Why a GPU cannot run the kernels, empty if it can.

    A fact of the machine, which a traced graph may hold.

    Args:
        device: The GPU's number.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or major < 8:
        return (
            "it needs an NVIDIA GPU of compute capability 8.0 or more "
            f"(got {torch.cuda.get_device_name(device)}, {major}.{minor})"
        )
    return ""


def serves(x: Tensor, *others: Optional[Tensor]) -> bool:
    r"""Whether kernels run where a tensor is, and can read it and others.

    Args:
        x: The tensor.
        *others: Further tensors of the call.

    Example:
        >>> serves(torch.ones(2))
        False
    """
    return (
        x.is_cuda and not dispatch.why_not(x, *others) and not why_not(x.device.index)
    )


def launch(module: str, function: str, on: Tensor, *args: Any) -> Any:
    r"""Calls a function of a module here, which imports Triton, on a tensor's device.

    Args:
        module: The module's name in this folder.
        function: The function's name.
        on: A tensor on the device.
        *args: The function's arguments.
    """
    with torch.cuda.device_of(on):
        return getattr(import_module(f"{__name__}.{module}"), function)(*args)
