r"""Checks that tensors have the same device, and the dtype of a layer's weights."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import Module


def check_devices(**tensors: Optional[Tensor]) -> None:
    r"""Checks that all tensors are on the same device as the first one.

    Args:
        **tensors: The tensors by their names; :obj:`None` is skipped.

    Raises:
        ValueError: If one is on another device.

    Example:
        >>> check_devices(x=torch.rand(3), perm=torch.arange(3, device="meta"))
        Traceback (most recent call last):
        ValueError: 'perm' is on meta, 'x' is on cpu
    """
    device, first = None, ""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if device is None:
            device, first = tensor.device, name
        if tensor.device != device:
            raise ValueError(
                f"'{name}' is on {tensor.device}, '{first}' is on {device}"
            )


def check_weight(name: str, x: Tensor, weight: Tensor) -> None:
    r"""Checks that rows have the device and, without autocast, the dtype of a weight.

    Args:
        name: The argument's name, for messages.
        x: The rows.
        weight: A weight of the layer.

    Raises:
        TypeError: If the weight has another dtype.
        ValueError: If it is on another device.

    Example:
        >>> check_weight("x", torch.rand(3), torch.rand(3))
    """
    if x.device != weight.device:
        raise ValueError(
            f"'{name}' is on {x.device}, the weights are on {weight.device}: move one "
            f"of them, such as '{name}.to({str(weight.device)!r})'"
        )
    same = x.dtype == weight.dtype or not weight.is_floating_point()
    if not same and not is_autocast(x.device):
        raise TypeError(
            f"'{name}' is {x.dtype}, the weights are {weight.dtype}: convert one of "
            f"them, such as '{name}.to({weight.dtype})'"
        )


def dtype_of_weights(module: Module, default: torch.dtype) -> torch.dtype:
    r"""Returns the dtype of the first weight of a module that is floating-point.

    Args:
        module: The module.
        default: The dtype to return if there is none.

    Example:
        >>> dtype_of_weights(torch.nn.Linear(3, 8).double(), torch.float32)
        torch.float64
    """
    floats = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(floats, default)


def is_autocast(device: torch.device) -> bool:
    r"""Whether autocast is enabled on a device; some devices do not support it.

    Args:
        device: The device.

    Example:
        >>> is_autocast(torch.device("meta"))
        False
    """
    known = torch.amp.is_autocast_available(device.type)
    return known and torch.is_autocast_enabled(device.type)
