r"""Checks of any tensor: its class, its memory, its dtype and its shape."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torch_geometric_erwin.utils.checks.values import (
    has_memory,
    is_wrapped,
    needed_bytes,
)

#: The half-precision dtypes. Layers multiply in them, but sum up in float32.
HALF = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, torch.float64, *HALF)


def check_tensor(name: str, tensor: Tensor) -> None:
    r"""Checks that an argument is a dense tensor whose memory is allocated.

    The memory of two kinds of tensors is not looked at: those that have no numbers
    (:obj:`meta` tensors, and tensors on a GPU while a graph is traced), and those that
    a function transform wraps.

    Args:
        name: The argument's name, for messages.
        tensor: The argument.

    Raises:
        TypeError: If it is not a dense tensor.
        ValueError: If its memory was released, or never allocated.

    Example:
        >>> released = torch.rand(3)
        >>> _ = released.untyped_storage().resize_(0)
        >>> check_tensor("pos", released)
        Traceback (most recent call last):
        ValueError: the memory of 'pos' has 0 bytes of the 12 that it needs
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"'{name}' must be a tensor (got '{type(tensor).__name__}')")
    if torch.compiler.is_compiling():
        return
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else tensor.layout
        raise TypeError(f"'{name}' must be a dense tensor (got {kind})")
    if is_wrapped(tensor) or has_memory(tensor):
        return
    if is_traceable_wrapper_subclass(tensor):  # its numbers are in other tensors
        return
    size, needed = tensor.untyped_storage().nbytes(), needed_bytes(tensor)
    if size < needed:
        raise ValueError(
            f"the memory of '{name}' has {size} bytes of the {needed} that it needs"
        )
    if tensor.is_cpu:
        raise ValueError(
            f"'{name}' must have values that can be read (got a "
            f"'{type(tensor).__name__}' without)"
        )


def check_floating(name: str, x: Tensor) -> None:
    r"""Checks that a tensor has a floating-point dtype of 16 bits or more.

    PyTorch does not calculate in narrower ones.

    Args:
        name: The argument's name, for messages.
        x: The argument.

    Raises:
        TypeError: If it has another dtype.

    Example:
        >>> check_floating("x", torch.arange(3))
        Traceback (most recent call last):
        TypeError: 'x' must be floating-point (got torch.int64)
    """
    if x.dtype not in _FLOATS:
        wide = " of 16 bits or more" if x.is_floating_point() else ""
        raise TypeError(f"'{name}' must be floating-point{wide} (got {x.dtype})")


def check_int64(name: str, tensor: Tensor) -> None:
    r"""Checks that an argument is a dense tensor of 64-bit integers.

    Args:
        name: The argument's name, for messages.
        tensor: The argument.

    Raises:
        TypeError: If it is anything else.

    Example:
        >>> check_int64("perm", [0, 1])
        Traceback (most recent call last):
        TypeError: 'perm' must be an int64 tensor (got 'list')
    """
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
        is_tensor = isinstance(tensor, Tensor)
        kind = tensor.dtype if is_tensor else f"'{type(tensor).__name__}'"
        raise TypeError(f"'{name}' must be an int64 tensor (got {kind})")
    check_tensor(name, tensor)


def check_rows(name: str, x: Tensor, num_rows: int, channels: int) -> None:
    r"""Checks the rows that a layer takes.

    Args:
        name: The argument's name, for messages.
        x: The argument.
        num_rows: The number of rows :math:`N`.
        channels: The number of entries in each row.

    Shapes:
        - **x:** :math:`(N, C)`.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it has another shape.

    Example:
        >>> check_rows("x", torch.rand(5, 2), 5, 3)
        Traceback (most recent call last):
        ValueError: 'x' must have shape [5, 3] (got [5, 2])
    """
    check_tensor(name, x)
    check_floating(name, x)
    if x.dim() != 2 or x.size(0) != num_rows or x.size(1) != channels:
        raise ValueError(
            f"'{name}' must have shape [{num_rows}, {channels}] (got {[*x.shape]})"
        )


def check_edge_attr(
    name: str, edge_attr: Tensor, num_edges: int, channels: int
) -> Tensor:
    r"""Checks the features of edges and returns them, one row per edge.

    Args:
        name: The argument's name, for messages.
        edge_attr: The argument. A single feature may have no axis of its own, as PyG's
            layers allow.
        num_edges: The number of edges :math:`E`.
        channels: The number of features of an edge.

    Shapes:
        - **edge_attr:** :math:`(E, F)` or :math:`(E)`; **output:** :math:`(E, F)`.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it has another shape.

    Example:
        >>> check_edge_attr("edge_attr", torch.rand(4), num_edges=4, channels=1).shape
        torch.Size([4, 1])
    """
    check_tensor(name, edge_attr)
    if edge_attr.dim() == 1 and channels == 1:
        edge_attr = edge_attr[:, None]
    check_rows(name, edge_attr, num_edges, channels)
    return edge_attr


def check_shape(name: str, x: Tensor, sizes: Sequence[int]) -> None:
    r"""Checks the first sizes of a tensor.

    Args:
        name: The argument's name, for messages.
        x: The argument.
        sizes: What its shape must begin with.

    Raises:
        TypeError: If it is not a dense tensor.
        ValueError: If its shape begins with other sizes.

    Example:
        >>> check_shape("x", torch.rand(5, 2), (4,))
        Traceback (most recent call last):
        ValueError: 'x' must have shape [4, ...] (got [5, 2])
    """
    check_tensor(name, x)
    if x.shape[: len(sizes)] != tuple(sizes):
        wanted = ", ".join(map(str, sizes))
        raise ValueError(f"'{name}' must have shape [{wanted}, ...] (got {[*x.shape]})")
