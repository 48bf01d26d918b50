r"""Checks of what describes point clouds: positions, offsets and assignments."""

from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin import _native
from torch_geometric_erwin.utils.checks.scalars import check_int
from torch_geometric_erwin.utils.checks.tensors import (
    HALF,
    check_floating,
    check_int64,
    check_rows,
    check_tensor,
)
from torch_geometric_erwin.utils.checks.values import has_memory, reads_values


def check_pos(pos: Tensor, values: bool = True, name: str = "pos") -> Tensor:
    r"""Checks positions and returns them in a form that the native operators take.

    They are detached; float16 and bfloat16 become float32, which is exact.

    Args:
        pos: The node positions.
        values: Whether to check values too; if they are on a GPU, this waits for it.
        name: The argument's name, for messages.

    Shapes:
        - **pos:** :math:`(N, D)` with :math:`D \geq 1`.
        - **output:** :math:`(N, D)`, float32 or float64.

    Raises:
        TypeError: If the positions are not a floating-point tensor.
        ValueError: If they are not two-dimensional or not finite.

    Example:
        >>> check_pos(torch.zeros(4, 3, dtype=torch.float16)).dtype
        torch.float32
    """
    check_tensor(name, pos)
    if pos.dim() != 2 or pos.size(1) < 1:
        raise ValueError(f"'{name}' must have shape [N, D] (got {list(pos.shape)})")
    check_floating(name, pos)
    if pos.dtype in HALF:
        pos = pos.float()
    pos = pos.detach()
    if values and not torch.compiler.is_compiling():
        check_finite(pos, name)
    return pos


def check_positions(name: str, pos: Tensor, num_rows: int, dim: int) -> None:
    r"""Checks the row positions that a layer takes; on the CPU also their values.

    Args:
        name: The argument's name, for messages.
        pos: The argument.
        num_rows: The number of rows :math:`N`.
        dim: The number of coordinates :math:`D`.

    Shapes:
        - **pos:** :math:`(N, D)`.

    Raises:
        TypeError: If they are not a floating-point tensor.
        ValueError: If they have another shape, or are not finite.

    Example:
        >>> check_positions("pos", torch.tensor([[1.0, float("inf")]]), 1, 2)
        Traceback (most recent call last):
        ValueError: 'pos' must be finite (row 0 is [1.0, inf])
    """
    check_rows(name, pos, num_rows, dim)
    if pos.device.type == "cpu" and not torch.compiler.is_compiling():
        check_finite(pos, name)


def check_dim(name: str, pos: Tensor, dim: int) -> None:
    r"""Checks the number of coordinates that a layer takes, and that it does not get
    edges for positions.

    Args:
        name: The argument's name, for messages.
        pos: The argument.
        dim: The number of coordinates :math:`D`.

    Shapes:
        - **pos:** :math:`(N, D)`.

    Raises:
        TypeError: If it has the form of edges.
        ValueError: If there are more or fewer coordinates.

    Example:
        >>> check_dim("pos", torch.rand(9, 2), dim=3)
        Traceback (most recent call last):
        ValueError: 'pos' must have 3 coordinates (got 2): build it with 'dim=2'
    """
    if pos.dim() != 2:
        return
    if pos.size(0) == 2 and pos.dtype in (torch.int64, torch.int32):
        raise TypeError(
            f"'{name}' has the form of edges: the arguments are (x, pos, edge_index, "
            f"batch), in this order (got {pos.dtype}, {[*pos.shape]})"
        )
    if pos.size(1) != dim and pos.is_floating_point():
        raise ValueError(
            f"'{name}' must have {dim} coordinates (got {pos.size(1)}): build "
            f"it with 'dim={pos.size(1)}'"
        )


def check_finite(pos: Tensor, name: str = "pos") -> None:
    r"""Checks that all positions are finite.

    Args:
        pos: The node positions.
        name: The argument's name, for messages.

    Shapes:
        - **pos:** :math:`(N, D)`.

    Raises:
        ValueError: If a position is not finite.

    Example:
        >>> check_finite(torch.tensor([[0.0], [float("nan")]]))
        Traceback (most recent call last):
        ValueError: 'pos' must be finite (row 1 is [nan])
    """
    row = _not_finite(pos)
    if row is not None:
        raise ValueError(f"'{name}' must be finite (row {row[0]} is {row[1]})")


@reads_values
def _not_finite(pos: Tensor) -> Optional[tuple[int, list[float]]]:
    # Returns the index and the values of the first row that is not finite.
    is_native = pos.dtype in (torch.float32, torch.float64) and has_memory(pos)
    if pos.device.type == "cpu" and is_native:
        finite = _native.is_finite(pos.contiguous())
    else:
        finite = bool(torch.isfinite(pos).all())
    if finite:
        return None
    row = int((~torch.isfinite(pos).all(dim=1)).nonzero()[0])
    return row, pos[row].tolist()


def check_ptr(
    ptr: Optional[Tensor],
    num_rows: int,
    device: torch.device,
    values: bool = True,
    name: str = "ptr",
) -> Tensor:
    r"""Checks the row offsets of the clouds and returns them.

    If none are given, all rows are one cloud.

    Args:
        ptr: The offsets, as in :class:`torch_geometric.data.Batch`.
        num_rows: The number of rows :math:`N` of all clouds.
        device: The device that they must be on.
        values: Whether to check values too; if they are on a GPU, this waits for it.
        name: The argument's name, for messages.

    Shapes:
        - **ptr:** :math:`(G + 1)`, int64, ascending from 0 to :math:`N`.

    Raises:
        TypeError: If the offsets are not int64.
        ValueError: If they are malformed or on another device.

    Example:
        >>> check_ptr(None, 5, torch.device("cpu"))
        tensor([0, 5])
    """
    if ptr is None:
        # Computed on the device: to copy a tensor from the host would wait for a GPU.
        return torch.arange(2, device=device) * num_rows
    check_int64(name, ptr)
    if ptr.dim() != 1 or ptr.size(0) < 1:
        raise ValueError(f"'{name}' must have shape [G + 1] (got {list(ptr.shape)})")
    if ptr.device != device:
        raise ValueError(f"'{name}' is on {ptr.device}, the positions are on {device}")
    if values and not torch.compiler.is_compiling():
        if int(ptr[0]) != 0:
            raise ValueError(f"'{name}' must start at 0 (got {int(ptr[0])})")
        descents = (ptr[1:] < ptr[:-1]).nonzero()
        if descents.numel() > 0:
            i = int(descents[0])
            raise ValueError(
                f"'{name}' must not descend (entry {i} is {int(ptr[i])}, entry {i + 1} "
                f"is {int(ptr[i + 1])})"
            )
        if int(ptr[-1]) != num_rows:
            raise ValueError(
                f"'{name}' must end at the number of rows {num_rows} (got "
                f"{int(ptr[-1])})"
            )
    return ptr


def batch_to_ptr(batch: Tensor, num_clouds: Optional[int] = None) -> Tensor:
    r"""Turns a sorted assignment vector into row offsets.

    Args:
        batch: The cloud of every row.
        num_clouds: The number of clouds :math:`G`, if the last ones may be empty.

    Shapes:
        - **batch:** :math:`(N)`, int64, ascending.
        - **output:** :math:`(G + 1)`.

    Raises:
        TypeError: If the vector is not int64.
        ValueError: If it is not one-dimensional, not sorted or negative.

    Example:
        >>> batch_to_ptr(torch.tensor([0, 0, 2]))
        tensor([0, 2, 2, 3])
    """
    _check_batch(batch, "batch")
    if num_clouds is not None:
        num_clouds = check_int("num_clouds", num_clouds, 0)
    if num_clouds is None:
        num_clouds = int(batch[-1]) + 1 if batch.numel() > 0 else 0
    elif batch.numel() > 0 and int(batch[-1]) >= num_clouds:
        raise ValueError(
            f"'batch' names cloud {int(batch[-1])} of only {num_clouds} clouds: "
            "'num_clouds' must be larger"
        )
    return _offsets(batch, num_clouds)


def given_ptr(
    batch: Optional[Tensor],
    ptr: Optional[Tensor],
    pos: Tensor,
    at_least: int = 0,
    suffix: str = "",
) -> Optional[Tensor]:
    r"""Returns the row offsets of clouds that are given in one of two ways.

    Offsets are returned as they are, so that :func:`check_ptr` has to follow.

    Args:
        batch: The cloud of every row, or :obj:`None`.
        ptr: The row offsets of the clouds, or :obj:`None`.
        pos: The positions of the rows.
        at_least: The number of clouds if an assignment names fewer: the last ones are
            then empty.
        suffix: What follows :obj:`batch` and :obj:`ptr` in the arguments' names.

    Shapes:
        - **batch:** :math:`(N)`, int64, ascending.
        - **ptr:** :math:`(G + 1)`.
        - **pos:** :math:`(N, D)`.
        - **output:** :math:`(G + 1)`, or :obj:`None` if neither is given.

    Raises:
        TypeError: If the assignment is not int64.
        ValueError: If both are given, or the assignment is malformed.

    Example:
        >>> given_ptr(torch.tensor([0, 0, 2]), None, torch.rand(3, 2))
        tensor([0, 2, 2, 3])
    """
    if batch is None:
        return ptr
    name = f"batch{suffix}"
    if ptr is not None:
        raise ValueError(
            f"'{name}' and 'ptr{suffix}' say the same, one of them must be given "
            "(got both)"
        )
    _check_batch(batch, name)
    num_rows = pos.size(0) if isinstance(pos, Tensor) and pos.dim() == 2 else -1
    if num_rows >= 0 and batch.size(0) != num_rows:
        raise ValueError(
            f"'{name}' must have an entry for each of {num_rows} rows (got "
            f"{batch.size(0)}); row offsets of clouds are given as 'ptr{suffix}='"
        )
    if at_least == 0 or not torch.compiler.is_compiling():
        last = int(batch[-1]) if batch.numel() > 0 else -1
        at_least = max(at_least, last + 1)
    return _offsets(batch, at_least)


def _check_batch(batch: Tensor, name: str) -> None:
    check_int64(name, batch)
    if batch.is_meta:
        raise ValueError(f"'{name}' is on meta, it must be where it has values")
    if batch.dim() != 1:
        raise ValueError(f"'{name}' must have shape [N] (got {list(batch.shape)})")
    if batch.numel() == 0 or torch.compiler.is_compiling():
        return
    descents = (batch[1:] < batch[:-1]).nonzero()
    if descents.numel() > 0:
        i = int(descents[0]) + 1
        raise ValueError(
            f"'{name}' must be sorted (entry {i} is {int(batch[i])} after "
            f"{int(batch[i - 1])}); sort the nodes by cloud first"
        )
    if int(batch[0]) < 0:
        raise ValueError(f"'{name}' must not be negative (got {int(batch[0])})")


def _offsets(batch: Tensor, num_clouds: int) -> Tensor:
    clouds = torch.arange(num_clouds + 1, device=batch.device)
    return torch.searchsorted(batch.contiguous(), clouds)
