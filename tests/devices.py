"""Devices without values: reading a value, for which a real GPU is asked, raises."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

Move = Callable[[Any], Any]


def _index(x: Tensor, items: Any) -> Tensor:
    axis = 0
    items = items if isinstance(items, tuple) else (items,)
    for item in items:
        if item is None:
            x = x.unsqueeze(axis)
        elif isinstance(item, int):
            x = x.select(axis, item)
            continue
        elif isinstance(item, slice):
            x = torch.ops.aten.slice(x, axis, item.start, item.stop, item.step or 1)
        elif isinstance(item, Tensor):
            x = torch.ops.aten.index(x, [None] * axis + [item])
        else:
            raise NotImplementedError(f"x[{items}]")
        axis += 1
    return x


# Methods that call the CUDA driver first; a CPU build of PyTorch has no driver.
_OPERATORS = {Tensor.__getitem__: _index, Tensor.__invert__: torch.bitwise_not}


class _Operators(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _OPERATORS.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def without_values(device: str) -> Iterator[Move]:
    """Yields a function that moves tensors, modules and data to such a device.

    Everything that depends on a value raises there: ``item``, ``nonzero``, a mask as an
    index, a tensor in an ``if``. ``meta`` supports training. With ``cuda``, a CPU build
    of PyTorch computes no gradients and does not update running statistics, but takes
    the same branches as on a GPU.
    """

    def empty(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device=device)

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return empty(value)
        if not isinstance(value, torch.nn.Module):
            return value.__copy__().apply(empty)
        for module in value.modules():
            for name, tensor in [*module.named_parameters(recurse=False)]:
                setattr(module, name, torch.nn.Parameter(empty(tensor)))
            for name, tensor in [*module.named_buffers(recurse=False)]:
                setattr(module, name, empty(tensor))
        return value

    if device == "meta":
        yield move
        return
    hopper = patch.object(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with FakeTensorMode(), _Operators(), torch.no_grad(), hopper:
        yield move
