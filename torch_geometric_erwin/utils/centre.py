r"""Subtracting from rows the mean of their segment.

Means are computed relative to a segment's first row, so that they are as exact far
from the origin as near it.
"""

from typing import Optional

from torch import Tensor

from torch_geometric_erwin.utils.rows import (
    dense_width,
    from_dense,
    put_rows,
    row_mask,
    take_rows,
    to_dense,
)


def centre(x: Tensor, lengths: Tensor, perm: Optional[Tensor], limit: int) -> Tensor:
    r"""Subtracts the mean of its segment from every row, differentiable to any order.

    Args:
        x: The rows, which have few columns.
        lengths: The number of rows of every segment. Segments are consecutive in the
            order of the rows, or in that of :obj:`perm` if it is given.
        perm: The row at every place.
        limit: The largest length that is possible.

    Shapes:
        - **x:** :math:`(N, D)`; **lengths:** :math:`(K)`; **perm:** :math:`(N)`;
          **output:** :math:`(N, D)`, in the order of :obj:`x`.

    Example:
        >>> import torch
        >>> x, perm = torch.tensor([[1.0], [5.0], [3.0]]), torch.tensor([0, 2, 1])
        >>> centre(x, torch.tensor([2, 1]), perm, limit=2).flatten().tolist()
        [-1.0, 0.0, 1.0]
    """
    rows = x if perm is None else take_rows(x, perm)
    offset, _ = centre_dense(rows, lengths, dense_width(lengths, limit))
    offset = from_dense(offset, lengths, x.size(0))
    return offset if perm is None else put_rows(offset, perm, x.size(0))


def centre_dense(x: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    r"""Returns the dense view of rows minus their segment's mean, and the means.

    Args:
        x: The rows, which have few columns.
        lengths: The number of rows of every segment, at most :obj:`width`.
        width: The number of slots of a segment.

    Shapes:
        - **x:** :math:`(N, D)`; **lengths:** :math:`(K)`; **output:**
          :math:`(K, B, D)`, zero in slots without a row, and :math:`(K, D)`.

    Example:
        >>> import torch
        >>> centre_dense(torch.tensor([[1.0], [3.0]]), torch.tensor([2]), 2)
        (tensor([[[-1.],
                 [ 1.]]]), tensor([[2.]]))
    """
    dense = to_dense(x, lengths, width)
    first = dense[:, :1]
    mask = row_mask(lengths, width).unsqueeze(-1)
    offset = (dense - first) * mask
    mean = offset.sum(1, keepdim=True) / lengths.clamp(min=1)[:, None, None]
    return (offset - mean) * mask, (first + mean).squeeze(1)
