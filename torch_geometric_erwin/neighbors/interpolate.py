r"""Interpolation of features from one set of points to another."""

from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin.neighbors.search import MANY, cross_args
from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.utils.checks import (
    HALF,
    check_devices,
    check_floating,
    check_int,
    check_tensor,
)
from torch_geometric_erwin.utils.rows import put_rows, read_rows


def knn_interpolate(
    x: Tensor,
    pos_x: Tensor,
    pos_y: Tensor,
    batch_x: Optional[Tensor] = None,
    batch_y: Optional[Tensor] = None,
    k: int = 3,
    *,
    ptr_x: Optional[Tensor] = None,
    ptr_y: Optional[Tensor] = None,
    tree: Optional[Tree] = None,
) -> Tensor:
    r"""Interpolates features from the points of :obj:`pos_x` to those of :obj:`pos_y`,
    as in `"PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric
    Space" <https://arxiv.org/abs/1706.02413>`_.

    .. math::
        \mathbf{f}(y) = \frac{\sum_{i=1}^k w(x_i) \mathbf{f}(x_i)}{\sum_{i=1}^k
        w(x_i)}, \qquad w(x_i) = \frac{1}{\max(\| \mathbf{p}(y) - \mathbf{p}(x_i) \|^2,
        10^{-16})}

    Here :math:`x_1, \ldots, x_k` are the nearest points to :math:`y`, by
    :func:`~torch_geometric_erwin.knn`. It takes its arguments as
    :func:`torch_geometric.nn.unpool.knn_interpolate` does. Unlike there, positions get
    a gradient if they ask for one (:obj:`requires_grad`): that of the weights, between
    changes of the neighbours. A point whose cloud has no points in :obj:`pos_x` gets
    zeros.

    Args:
        x: The features of the points of :obj:`pos_x`, of any floating-point dtype,
            which the output has too.
        pos_x: Where the features are, on the CPU or a CUDA device.
        pos_y: Where they are wanted. Weights are computed in the dtype of the
            positions, or in float32 for float16 and bfloat16.
        batch_x: The cloud of every point of :obj:`pos_x`, ascending. (default: the
            clouds of the tree, or one cloud)
        batch_y: The cloud of every point of :obj:`pos_y`, ascending. (default: one
            cloud)
        k: The number of neighbours.
        ptr_x: The row offsets of the clouds of :obj:`pos_x`, in place of
            :obj:`batch_x`.
        ptr_y: The row offsets of the clouds of :obj:`pos_y`, in place of
            :obj:`batch_y`.
        tree: A tree of :obj:`pos_x` with the balanced layout, which is searched in
            place of a new one; the result is the same.

    Shapes:
        - **x:** :math:`(N, C)`.
        - **pos_x:** :math:`(N, D)`; **pos_y:** :math:`(M, D)`, in the same unit and
          dtype.
        - **batch_x:** :math:`(N)`, int64; **batch_y:** :math:`(M)`.
        - **ptr_x:** :math:`(G + 1)`, int64; **ptr_y:** :math:`(G + 1)`.
        - **output:** :math:`(M, C)`.

    Raises:
        TypeError: If an argument has another type, or the positions two dtypes.
        ValueError: If an argument is malformed, on another device, or the tree was
            built for other points; if a position is not finite, or the positions extend
            so far that squared distances overflow.

    Example:
        >>> x, pos_x = torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [1.0]])
        >>> knn_interpolate(x, pos_x, torch.tensor([[0.25], [0.5]]), k=2)
        tensor([[0.3000],
                [1.5000]])
    """
    k = check_int("k", k, 1, maximum=MANY)
    clouds, names = (batch_x, batch_y, ptr_x, ptr_y), ("pos_x", "pos_y")
    search = cross_args(pos_x, pos_y, *clouds, tree, names)
    check_tensor("x", x)
    check_floating("x", x)
    check_devices(pos_x=pos_x, x=x)
    if x.dim() != 2 or x.size(0) != pos_x.size(0):
        raise ValueError(f"'x' must have shape [{pos_x.size(0)}, C] (got {[*x.shape]})")
    if k > _FEW:
        k = max(1, min(k, pos_x.size(0)))
    to, of = torch.ops.erwin.cross_knn(*search, k)
    if pos_x.dtype in HALF:
        pos_x, pos_y = pos_x.float(), pos_y.float()
    offset = read_rows(pos_x, of) - read_rows(pos_y, to)
    weight = 1.0 / offset.square().sum(dim=-1, keepdim=True).clamp(min=1e-16)
    share = weight / read_rows(_sums(weight, to, pos_y.size(0), k), to)
    wide = torch.promote_types(x.dtype, torch.float32)  # sums of half precision
    values = read_rows(x, of).to(wide) * share.to(wide)
    return _sums(values, to, pos_y.size(0), k).to(x.dtype)


# Up to so many neighbours, there is a slot for each also if there are fewer points, so
# that compiled code does not depend on whether there are.
_FEW = 32


def _sums(values: Tensor, to: Tensor, size: int, k: int) -> Tensor:
    # Returns the sums of rows with the same number in `to`, which ascends; at most `k`
    # have the same one. They are added one after the other: `scatter` on a GPU has no
    # fixed order, and that of `sum` depends on the number of slots, so on whether other
    # clouds have more points. Empty slots add zeros.
    if torch.compiler.is_compiling() or to.size(0) < size * k:
        count = to.new_zeros(size).index_add(0, to, torch.ones_like(to))
        start = torch.arange(size, device=to.device) * k - (count.cumsum(0) - count)
        slots = torch.arange(to.size(0), device=to.device) + start[to]
        values = put_rows(values, slots, size * k)
    first, *others = values.view(size, k, values.size(1)).unbind(1)
    return sum(others, first)
