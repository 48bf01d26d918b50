r"""Checks of integers and flags that describe rows: runs, orders, masks and edges."""

import torch
from torch import Tensor

from torch_geometric_erwin.utils.checks.tensors import check_tensor
from torch_geometric_erwin.utils.checks.values import is_readable


def check_lengths(name: str, lengths: Tensor, num_rows: int, limit: int) -> None:
    r"""Checks the lengths of consecutive segments of rows: runs, balls or groups.

    Args:
        name: The argument's name, for messages.
        lengths: The number of rows of every segment.
        num_rows: The number of rows.
        limit: The largest length that is possible.

    Shapes:
        - **lengths:** :math:`(K)`, int64.

    Raises:
        TypeError: If they are not a tensor.
        ValueError: If they are malformed, do not sum to the number of rows, or exceed
            the limit.

    Example:
        >>> check_lengths("ball_len", torch.tensor([4, 2]), num_rows=6, limit=4)
    """
    check_tensor(name, lengths)
    if lengths.dim() != 1 or lengths.dtype != torch.int64:
        raise ValueError(
            f"'{name}' must be int64 with one dimension (got {lengths.dtype}, "
            f"{list(lengths.shape)})"
        )
    if not is_readable(lengths):
        return
    total = int(lengths.sum())
    if total != num_rows:
        raise ValueError(
            f"'{name}' must sum to the number of rows {num_rows} (got {total})"
        )
    if lengths.size(0) == 0:
        return
    low, high = (int(t) for t in lengths.aminmax())
    if low < 0 or high > limit:
        bad = low if low < 0 else high
        raise ValueError(f"'{name}' must lie between 0 and {limit} (got {bad})")


def check_permutation(name: str, perm: Tensor, num_rows: int) -> None:
    r"""Checks a permutation of rows.

    Args:
        name: The argument's name, for messages.
        perm: The row at every place.
        num_rows: The number of rows.

    Shapes:
        - **perm:** :math:`(N)`, int64.

    Raises:
        TypeError: If it is not an int64 tensor.
        ValueError: If it has another shape, or does not hold every row once.

    Example:
        >>> check_permutation("perm", torch.tensor([1, 1]), 2)
        Traceback (most recent call last):
        ValueError: 'perm' must hold every row once (row 1 is there 2 times)
    """
    check_tensor(name, perm)
    if perm.dim() != 1 or perm.size(0) != num_rows:
        raise ValueError(f"'{name}' must have shape [{num_rows}] (got {[*perm.shape]})")
    if perm.dtype != torch.int64:
        raise TypeError(f"'{name}' must be int64 (got {perm.dtype})")
    if num_rows == 0 or not is_readable(perm):
        return
    for row in map(int, perm.aminmax()):
        if not 0 <= row < num_rows:
            raise ValueError(
                f"'{name}' must hold rows from 0 to {num_rows - 1} (got {row})"
            )
    count = torch.bincount(perm)
    if int(count.max()) > 1:
        row = int(count.argmax())
        raise ValueError(
            f"'{name}' must hold every row once (row {row} is there {count[row]} times)"
        )


def check_mask(name: str, mask: Tensor, num_rows: int) -> None:
    r"""Checks a mask, which has one flag for every row.

    Args:
        name: The argument's name, for messages.
        mask: The flags.
        num_rows: The number of rows.

    Shapes:
        - **mask:** :math:`(N)`, bool.

    Raises:
        TypeError: If it is not a boolean tensor.
        ValueError: If it has another shape.

    Example:
        >>> check_mask("mask", torch.tensor([True]), 2)
        Traceback (most recent call last):
        ValueError: 'mask' must have shape [2] (got [1]), a flag for every row
    """
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"'{name}' must be boolean (got {mask.dtype})")
    if mask.dim() != 1 or mask.size(0) != num_rows:
        raise ValueError(
            f"'{name}' must have shape [{num_rows}] (got {[*mask.shape]}), a flag for "
            "every row"
        )


def check_edges(
    name: str, edge_index: Tensor, num_nodes: int, int32: bool = False
) -> None:
    r"""Checks edges between nodes, or between rows.

    Args:
        name: The argument's name, for messages.
        edge_index: The edges.
        num_nodes: The number of nodes :math:`N`.
        int32: Whether 32-bit integers are allowed too.

    Shapes:
        - **edge_index:** :math:`(2, E)`, int64.

    Raises:
        TypeError: If they are not an int64 tensor.
        ValueError: If they have another shape, or name a node that does not exist.

    Example:
        >>> check_edges("edge_index", torch.tensor([[0], [3]]), 3)
        Traceback (most recent call last):
        ValueError: 'edge_index' must name one of 3 nodes (got 3)
    """
    check_tensor(name, edge_index)
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"'{name}' must have shape [2, E] (got {[*edge_index.shape]})")
    if edge_index.dtype != torch.int64 and not (
        int32 and edge_index.dtype == torch.int32
    ):
        raise TypeError(f"'{name}' must be int64 (got {edge_index.dtype})")
    if not is_readable(edge_index):
        return
    if edge_index.size(1) == 0:
        return
    for node in map(int, edge_index.aminmax()):
        if not 0 <= node < num_nodes:
            raise ValueError(
                f"'{name}' must name one of {num_nodes} nodes (got {node})"
            )
