r"""Moving rows between clouds, tree order, rotated order and the dense view."""

from typing import Any

import torch
from torch import Tensor

from torch_geometric_erwin.utils.onnx import is_onnx_export


def segment_ids(lengths: Tensor, size: int) -> Tensor:
    r"""Returns the segment of every row, for consecutive segments of given lengths.

    Offsets are computed on the device of the lengths, and the sum of the lengths is an
    argument, so nothing waits for a GPU and shapes stay symbolic under
    :func:`torch.compile`.

    Args:
        lengths: The number of rows of every segment; zero is allowed.
        size: The sum of the lengths.

    Shapes:
        - **lengths:** :math:`(G)`; **output:** :math:`(N)`, ascending.

    Example:
        >>> segment_ids(torch.tensor([2, 0, 1]), 3)
        tensor([0, 0, 2])
    """
    ends = lengths.cumsum(0)
    if is_onnx_export():  # it has no `searchsorted`: count the ends up to every row
        count = ends.new_zeros(size + 1).scatter_add(0, ends, torch.ones_like(ends))
        return count.cumsum(0)[:-1]
    rows = torch.arange(size, device=lengths.device)
    return torch.searchsorted(ends, rows, right=True)


def slots_of(lengths: Tensor, size: int, width: int) -> Tensor:
    r"""Returns the slot of every row in the dense view :obj:`[segments, width]`.

    Slots are counted through all segments.

    Args:
        lengths: The number of rows of every segment, at most :obj:`width`.
        size: The sum of the lengths.
        width: The number of slots of a segment.

    Shapes:
        - **lengths:** :math:`(K)`; **output:** :math:`(N)`, ascending.

    Example:
        >>> slots_of(torch.tensor([2, 1]), size=3, width=4)
        tensor([0, 1, 4])
    """
    segment = segment_ids(lengths, size)
    start = torch.arange(lengths.size(0), device=lengths.device) * width
    shift = start - (lengths.cumsum(0) - lengths)
    return torch.arange(size, device=lengths.device) + shift[segment]


def put_rows(x: Tensor, index: Tensor, size: int) -> Tensor:
    r"""Writes row :obj:`i` to place :obj:`index[i]` of :obj:`size` places.

    Args:
        x: The rows.
        index: A different place for every row.
        size: The number of places; those that get no row are zero.

    Shapes:
        - **x:** :math:`(N, *)`; **index:** :math:`(N)`; **output:** :math:`(M, *)`.

    Example:
        >>> put_rows(torch.tensor([5.0, 6.0]), torch.tensor([2, 0]), 3)
        tensor([6., 0., 5.])
    """
    return x.new_zeros(size, *x.shape[1:]).index_copy(0, index, x)


def read_rows(x: Tensor, index: Tensor) -> Tensor:
    r"""Reads rows, any of them several times.

    Equal to :obj:`x[index]`. The gradient of a row is a sum that is added up in the
    same order in every call, for which a CPU and a GPU have different operators.

    Args:
        x: The rows.
        index: The row to read at every place.

    Shapes:
        - **x:** :math:`(M, *)`; **index:** :math:`(N)`; **output:** :math:`(N, *)`.

    Example:
        >>> read_rows(torch.tensor([5.0, 6.0]), torch.tensor([1, 1, 0]))
        tensor([6., 6., 5.])
    """
    # On a GPU, the gradient of `index_select` is added by atomics; on a CPU, that of
    # indexing is, by several threads.
    return x[index] if x.is_cuda else x.index_select(0, index)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    r"""Reads the rows :obj:`index`, which must be distinct.

    Equal to :obj:`x[index]`. Because no row is read twice, the gradient of a row is
    written, not accumulated.

    Args:
        x: The rows.
        index: Distinct rows.

    Shapes:
        - **x:** :math:`(M, *)`; **index:** :math:`(N)`; **output:** :math:`(N, *)`.

    Example:
        >>> take_rows(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([2, 0]))
        tensor([7., 5.])
    """
    if torch.compiler.is_compiling():  # the compiler writes the gradient itself
        return x.index_select(0, index)
    return _TakeRows.apply(x, index)


class _TakeRows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, index = inputs
        ctx.size = x.size(0)
        ctx.save_for_backward(index)
        ctx.save_for_forward(index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return put_rows(grad, index, ctx.size), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (index,) = ctx.saved_tensors
        return tangent.index_select(0, index)


def row_mask(lengths: Tensor, width: int) -> Tensor:
    r"""Returns which slots of the dense view hold a row.

    Args:
        lengths: The number of rows of every segment.
        width: The number of slots of a segment.

    Shapes:
        - **lengths:** :math:`(K)`; **output:** :math:`(K, B)`, bool.

    Example:
        >>> row_mask(torch.tensor([2, 0]), 2).tolist()
        [[True, True], [False, False]]
    """
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def to_dense(x: Tensor, lengths: Tensor, width: int) -> Tensor:
    r"""Returns the dense view of consecutive segments; slots without a row are zero.

    Args:
        x: The rows.
        lengths: The number of rows of every segment, at most :obj:`width`.
        width: The number of slots of a segment.

    Shapes:
        - **x:** :math:`(N, *)`; **lengths:** :math:`(K)`;
          **output:** :math:`(K, B, *)`.

    Example:
        >>> to_dense(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 1]), 2).tolist()
        [[1.0, 2.0], [3.0, 0.0]]
    """
    shape = (lengths.size(0), width, *x.shape[1:])
    if _is_full(lengths, x.size(0), width):
        return x.reshape(shape)
    slots = slots_of(lengths, x.size(0), width)
    return put_rows(x, slots, lengths.size(0) * width).view(shape)


def from_dense(x: Tensor, lengths: Tensor, size: int) -> Tensor:
    r"""Reads the rows of a dense view: the inverse of :func:`to_dense`.

    Args:
        x: The dense view.
        lengths: The number of rows of every segment.
        size: The sum of the lengths.

    Shapes:
        - **x:** :math:`(K, B, *)`; **lengths:** :math:`(K)`;
          **output:** :math:`(N, *)`.

    Example:
        >>> dense = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> from_dense(dense, torch.tensor([2, 1]), 3)
        tensor([1., 2., 3.])
    """
    width, flat = x.size(1), x.flatten(0, 1)
    if _is_full(lengths, size, width):
        return flat
    return take_rows(flat, slots_of(lengths, size, width))


def dense_width(lengths: Tensor, limit: int) -> int:
    r"""Returns how many slots every segment gets in the dense view.

    Args:
        lengths: The number of rows of every segment.
        limit: The largest length that is possible.

    Shapes:
        - **lengths:** :math:`(K)`.

    Example:
        >>> dense_width(torch.tensor([3, 2]), limit=256)
        3
    """
    # On the CPU the longest segment is cheap to read. With small clouds the dense view
    # is then much narrower than the limit.
    if torch.compiler.is_compiling() or lengths.device.type != "cpu":
        return limit
    return max(1, int(lengths.max())) if lengths.size(0) > 0 else 1


def _is_full(lengths: Tensor, size: int, width: int) -> bool:
    # Whether every segment is full, so that the dense view needs no copy. Compiled code
    # does not ask, because its graph must serve segments that are not full too.
    return not torch.compiler.is_compiling() and size == lengths.size(0) * width
