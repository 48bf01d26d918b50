r"""Ball attention and message passing on CUDA devices, in Triton.

The modules of this folder are imported when an operator gets its first CUDA tensor: the
package does not need Triton.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor


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
