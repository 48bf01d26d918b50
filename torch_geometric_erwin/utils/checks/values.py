r"""Whether, and how, the numbers of a tensor can be read.

PyTorch has tensors without numbers (:obj:`meta` and fake ones), and function transforms
such as :func:`torch.vmap` wrap tensors so that single numbers cannot be read.
"""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

T = TypeVar("T")


def reads_values(check: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    r"""Lets a check read the values of rows that :mod:`torch.func` has wrapped.

    Args:
        check: The check. Under :func:`torch.vmap` it gets the rows of all samples.

    Example:
        >>> @reads_values
        ... def check(x):
        ...     print(x.tolist())
        >>> torch.func.grad(lambda x: check(x) or x.sum())(torch.ones(1, 2)).shape
        [[1.0, 1.0]]
        torch.Size([1, 2])
    """

    @wraps(check)
    def wrapper(x: Tensor) -> T:
        if not is_wrapped(x):
            return check(x)
        with torch._C._DisableFuncTorch():
            return check(unwrapped(x).flatten(0, -2))

    return wrapper


def unwrapped(x: Tensor) -> Tensor:
    r"""Returns the tensor inside the wrappers of :mod:`torch.func`.

    Under :func:`torch.vmap` it holds all samples.

    Args:
        x: The tensor.

    Example:
        >>> unwrapped(torch.ones(2))
        tensor([1., 1.])
    """
    return torch.func.debug_unwrap(x)


def is_wrapped(x: Tensor) -> bool:
    r"""Whether a function transform has wrapped a tensor.

    Args:
        x: The tensor.

    Example:
        >>> is_wrapped(torch.ones(2))
        False
    """
    return torch.func.debug_unwrap(x, recurse=False) is not x


def is_batched(x: Tensor) -> bool:
    r"""Whether a tensor stands for several samples of a :func:`torch.vmap`.

    Args:
        x: The tensor, which other transforms may have wrapped too.

    Example:
        >>> is_batched(torch.ones(2))
        False
    """
    # The tensor inside has one dimension more, that of the samples.
    return unwrapped(x).dim() > x.dim()


def is_readable(x: Tensor) -> bool:
    r"""Whether a check can read single values of a tensor without waiting for a GPU.

    Args:
        x: The tensor.

    Example:
        >>> is_readable(torch.ones(2))
        True
        >>> torch.vmap(lambda x: x * is_readable(x))(torch.ones(2)).tolist()
        [0.0, 0.0]
    """
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and not is_batched(x)
    )


def has_memory(tensor: Tensor) -> bool:
    r"""Whether all of a tensor's memory is allocated.

    Args:
        tensor: A tensor with storage.

    Example:
        >>> has_memory(torch.rand(3)), has_memory(torch.rand(3, device="meta"))
        (True, False)
    """
    if tensor.numel() == 0:
        return True
    if isinstance(tensor, FakeTensor):
        return False
    size = tensor.untyped_storage().nbytes()
    return tensor.data_ptr() != 0 and size >= needed_bytes(tensor)


def needed_bytes(tensor: Tensor) -> int:
    r"""Returns how many bytes a tensor's storage needs, up to its last element.

    Args:
        tensor: A tensor with strides.

    Example:
        >>> needed_bytes(torch.rand(2, 3)[0])
        12
    """
    if tensor.is_contiguous():
        length = tensor.numel()
    else:
        steps = zip(tensor.shape, tensor.stride())
        length = 1 + sum((size - 1) * stride for size, stride in steps)
    return int(tensor.storage_offset() + length) * tensor.itemsize
