r"""Triton kernels of ball attention and message passing, for CUDA devices.

The modules of this folder are imported when an operator gets its first CUDA tensor, so
that the package does not need Triton.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


@torch.compiler.assume_constant_result
def why_not(device: int) -> str:
    r"""Says why a GPU cannot run the kernels; empty if it can.

    The answer depends on the machine alone, so a traced graph takes it as a constant.

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


def launch(module: str, function: str, on: Tensor, *args: Any) -> Any:
    r"""Imports a module of this folder, and calls its function on a tensor's device.

    Args:
        module: The module's name in this folder.
        function: The function's name.
        on: A tensor on the device.
        *args: The function's arguments.
    """
    with torch.cuda.device_of(on):
        return getattr(import_module(f"{__name__}.{module}"), function)(*args)
