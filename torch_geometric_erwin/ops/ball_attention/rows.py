r"""Bringing rows into the order of a rotated tree and back."""

from typing import Optional, Union

from torch import Tensor

from torch_geometric_erwin.utils.rows import put_rows, take_rows

# Queries, keys and values, each [N, H, d], or one tensor [N, 3, H, d] of all three.
QKV = Union[Tensor, tuple[Tensor, Tensor, Tensor]]


def in_tree_order(
    qkv: QKV, pos: Tensor, perm: Optional[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Returns queries, keys, values and positions with the rows of a ball in a range.

    Args:
        qkv: Queries, keys and values, separate or as one tensor.
        pos: The row positions.
        perm: The row at every place.

    Shapes:
        - **qkv:** three of :math:`(N, H, d)` or :math:`(N, 3, H, d)`; **pos:**
          :math:`(N, D)`; **perm:** :math:`(N)`.

    Example:
        >>> import torch
        >>> qkv, pos = torch.arange(3.0).expand(4, 3).view(4, 3, 1, 1), torch.rand(4, 2)
        >>> in_tree_order(qkv, pos, None)[2].flatten().tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    q, k, v = qkv.unbind(1) if isinstance(qkv, Tensor) else qkv
    if perm is None:
        return q, k, v, pos
    q, k, v, pos = (take_rows(t, perm) for t in (q, k, v, pos))
    return q, k, v, pos


def in_row_order(out: Tensor, perm: Optional[Tensor]) -> Tensor:
    r"""Writes outputs in tree order to their rows.

    Args:
        out: The outputs.
        perm: The row at every place.

    Shapes:
        - **out:** :math:`(N, *)`; **perm:** :math:`(N)`; **output:** :math:`(N, *)`.

    Example:
        >>> import torch
        >>> in_row_order(torch.tensor([5.0, 6.0]), torch.tensor([1, 0]))
        tensor([6., 5.])
    """
    return out if perm is None else put_rows(out, perm, out.size(0))
