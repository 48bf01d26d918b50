r"""The operator ``erwin::centre``: rows relative to the mean of their segment.

In tensor maths this takes a dozen passes over few numbers, whose cost on a GPU is that
of launching them: there, one Triton kernel does all. Means are taken relative to a
segment's first row, so that they are as exact far from the origin as near it.
"""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin.ops import triton
from torch_geometric_erwin.ops.contract import implement, register_fake
from torch_geometric_erwin.utils.rows import (
    dense_width,
    from_dense,
    put_rows,
    row_mask,
    segment_ids,
    take_rows,
    to_dense,
)

# Offsets, in the order of x [N, D] or in the dense view [K, limit, D], and means.
torch.library.define(
    "erwin::centre",
    "(Tensor x, Tensor lengths, Tensor? perm, SymInt limit, bool dense) "
    "-> (Tensor, Tensor)",
)


def centre(x: Tensor, lengths: Tensor, perm: Optional[Tensor], limit: int) -> Tensor:
    r"""Rows relative to the mean of their segment, differentiable to any order.

    Args:
        x: The rows, of few columns.
        lengths: The rows of every segment, consecutive in the order of the rows, or of
            :obj:`perm` where it is given.
        perm: The row at every place.
        limit: The largest length that is possible.

    Shapes:
        - **x:** :math:`(N, D)`; **lengths:** :math:`(K)`; **perm:** :math:`(N)`;
          **output:** :math:`(N, D)`, in the order of :obj:`x`.

    Example:
        >>> x, perm = torch.tensor([[1.0], [5.0], [3.0]]), torch.tensor([0, 2, 1])
        >>> centre(x, torch.tensor([2, 1]), perm, limit=2).flatten().tolist()
        [-1.0, 0.0, 1.0]
    """
    if _is_served(x, lengths, perm):
        return torch.ops.erwin.centre(x, lengths, perm, limit, False)[0]
    rows = x if perm is None else take_rows(x, perm)
    dense, _ = _centre_dense(rows, lengths, dense_width(lengths, limit))
    offset = from_dense(dense, lengths, x.size(0))
    return offset if perm is None else put_rows(offset, perm, x.size(0))


def centre_dense(x: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    r"""The dense view of rows relative to their segment's mean, and the means.

    Args:
        x: The rows, of few columns.
        lengths: The rows of every segment, at most :obj:`width`.
        width: The slots of a segment.

    Shapes:
        - **x:** :math:`(N, D)`; **lengths:** :math:`(K)`; **output:**
          :math:`(K, B, D)`, zero in slots without a row, and :math:`(K, D)`.

    Example:
        >>> centre_dense(torch.tensor([[1.0], [3.0]]), torch.tensor([2]), 2)
        (tensor([[[-1.],
                 [ 1.]]]), tensor([[2.]]))
    """
    if _is_served(x, lengths):
        return torch.ops.erwin.centre(x, lengths, None, width, True)
    return _centre_dense(x, lengths, width)


def _centre_dense(x: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    dense = to_dense(x, lengths, width)
    first = dense[:, :1]
    mask = row_mask(lengths, width).unsqueeze(-1)
    offset = (dense - first) * mask
    mean = offset.sum(1, keepdim=True) / lengths.clamp(min=1)[:, None, None]
    return (offset - mean) * mask, (first + mean).squeeze(1)


def _is_served(x: Tensor, *others: Optional[Tensor]) -> bool:
    return x.dtype in (torch.float32, torch.float64) and triton.serves(x, *others)


@implement(
    *("erwin::centre", "CUDA"),
    x="float32|float64 [N, D]",
    lengths="int64 [K]",
    perm="int64 [N]",
    limit=0,
)
def _centre_cuda(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return triton.launch("centre", "centre", x, x, *args)


@register_fake("erwin::centre")
def _centre_fake(
    x: Tensor, lengths: Tensor, perm: Optional[Tensor], limit: int, dense: bool
) -> tuple[Tensor, Tensor]:
    (rows, dim), segments = x.shape, lengths.size(0)
    shape = (segments, limit, dim) if dense else (rows, dim)
    return x.new_empty(shape), x.new_empty(segments, dim)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, lengths, perm, ctx.limit, ctx.dense = inputs
    ctx.save_for_backward(lengths, perm)
    ctx.set_materialize_grads(False)
    ctx.rows = inputs[0].size(0)


def _backward(
    ctx: Any, grad_offset: Optional[Tensor], grad_mean: Optional[Tensor]
) -> tuple[Optional[Tensor], ...]:
    lengths, perm = ctx.saved_tensors
    grads = []
    if grad_offset is not None:
        if ctx.dense:
            grad_offset = from_dense(grad_offset, lengths, ctx.rows)
        # Centring is linear and symmetric, so that it is its own gradient.
        args = (grad_offset, lengths, perm, ctx.limit, False)
        grads.append(torch.ops.erwin.centre(*args)[0])
    if grad_mean is not None:
        # Rows behind the last segment have no share.
        share = F.pad(grad_mean / lengths.clamp(min=1)[:, None], (0, 0, 0, 1))
        share = share[segment_ids(lengths, ctx.rows)]
        grads.append(share if perm is None else put_rows(share, perm, ctx.rows))
    return sum(grads[1:], *grads[:1]) if grads else None, None, None, None, None


torch.library.register_autograd(
    "erwin::centre", _backward, setup_context=_setup_context
)
