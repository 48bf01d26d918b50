r"""Neighbours of the points of one set in another set."""

from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin.neighbors.search import MANY, cross_args
from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.utils.checks import check_int, check_radius


def knn(
    x: Tensor,
    y: Tensor,
    k: int,
    batch_x: Optional[Tensor] = None,
    batch_y: Optional[Tensor] = None,
    *,
    ptr_x: Optional[Tensor] = None,
    ptr_y: Optional[Tensor] = None,
    tree: Optional[Tree] = None,
) -> Tensor:
    r"""Finds the :obj:`k` nearest points of :obj:`x` for every point of :obj:`y`.

    The neighbours of a point of cloud :math:`g` of :obj:`y` are in cloud :math:`g` of
    :obj:`x`. It takes its arguments as :func:`torch_geometric.nn.pool.knn` does, and
    returns the same rows, but neighbours are sorted: nearest first. The search is
    exact. The result is the same on every device and for every number of threads: of
    points at the same distance, the one with the lower index counts as nearer. Squared
    distances are computed in the dtype of the positions, or in float32 for float16 and
    bfloat16. Positions get no gradient. Squares of distances below about 1e-19
    (float64: 1e-154) lose precision or become zero: rescale such positions.

    Args:
        x: The positions in which neighbours are searched, on the CPU or a CUDA device.
        y: The positions whose neighbours are searched.
        k: The number of neighbours. A point gets all points of a smaller cloud.
        batch_x: The cloud of every point of :obj:`x`, ascending. (default: the clouds
            of the tree, or one cloud)
        batch_y: The cloud of every point of :obj:`y`, ascending. (default: one cloud)
        ptr_x: The row offsets of the clouds of :obj:`x`, in place of :obj:`batch_x`.
        ptr_y: The row offsets of the clouds of :obj:`y`, in place of :obj:`batch_y`.
        tree: A tree of :obj:`x` with the balanced layout, which is searched in place of
            a new one; the result is the same.

    Shapes:
        - **x:** :math:`(N, D)` with any :math:`D \geq 1`, in any unit of length.
        - **y:** :math:`(M, D)`, in the same unit and dtype.
        - **batch_x:** :math:`(N)`, int64; **batch_y:** :math:`(M)`.
        - **ptr_x:** :math:`(G + 1)`, int64; **ptr_y:** :math:`(G + 1)`.
        - **output:** :math:`(2, E)`, int64: the ascending points of :obj:`y` in the
          first row, their neighbours in :obj:`x`, nearest first, in the second.

    Raises:
        TypeError: If an argument has another type, or the positions two dtypes.
        ValueError: If an argument is malformed, on another device, or the tree was
            built for other points; if a position is not finite, or the positions extend
            so far that squared distances overflow.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> knn(x, torch.tensor([[2.5], [0.1]]), k=2)
        tensor([[0, 0, 1, 1],
                [2, 1, 0, 1]])
    """
    k = check_int("k", k, 1, maximum=MANY)
    clouds = (batch_x, batch_y, ptr_x, ptr_y)
    return torch.ops.erwin.cross_knn(*cross_args(x, y, *clouds, tree), k)


def radius(
    x: Tensor,
    y: Tensor,
    r: float,
    batch_x: Optional[Tensor] = None,
    batch_y: Optional[Tensor] = None,
    max_num_neighbors: Optional[int] = None,
    *,
    ptr_x: Optional[Tensor] = None,
    ptr_y: Optional[Tensor] = None,
    tree: Optional[Tree] = None,
) -> Tensor:
    r"""Finds all points of :obj:`x` within a distance of every point of :obj:`y`.

    The neighbours of a point of cloud :math:`g` of :obj:`y` are in cloud :math:`g` of
    :obj:`x`. It takes its arguments as :func:`torch_geometric.nn.pool.radius` does, and
    returns the same rows, with two differences: there is no limit on the neighbours
    unless one is given, and they are sorted: nearest first. The search is exact. The
    result is the same on every device and for every number of threads. Neighbours are
    those with :math:`d^2 \leq r^2`. Both squares are computed in the dtype of the
    positions, or in float32 for float16 and bfloat16. Positions get no gradient.
    Squares of distances below about 1e-19 (float64: 1e-154) lose precision or become
    zero: rescale such positions.

    Args:
        x: The positions in which neighbours are searched, on the CPU or a CUDA device.
        y: The positions whose neighbours are searched.
        r: The distance, in the unit of the positions.
        batch_x: The cloud of every point of :obj:`x`, ascending. (default: the clouds
            of the tree, or one cloud)
        batch_y: The cloud of every point of :obj:`y`, ascending. (default: one cloud)
        max_num_neighbors: Keeps this many of a point's neighbours, the nearest ones; of
            points at the same distance, the one with the lower index counts as nearer.
            (default: all)
        ptr_x: The row offsets of the clouds of :obj:`x`, in place of :obj:`batch_x`.
        ptr_y: The row offsets of the clouds of :obj:`y`, in place of :obj:`batch_y`.
        tree: A tree of :obj:`x` with the balanced layout, which is searched in place of
            a new one; the result is the same.

    Shapes:
        - **x:** :math:`(N, D)` with any :math:`D \geq 1`, in any unit of length.
        - **y:** :math:`(M, D)`, in the same unit and dtype.
        - **batch_x:** :math:`(N)`, int64; **batch_y:** :math:`(M)`.
        - **ptr_x:** :math:`(G + 1)`, int64; **ptr_y:** :math:`(G + 1)`.
        - **output:** :math:`(2, E)`, int64: the ascending points of :obj:`y` in the
          first row, their neighbours in :obj:`x`, nearest first, in the second.

    Raises:
        TypeError: If an argument has another type, or the positions two dtypes.
        ValueError: If an argument is malformed, on another device, or the tree was
            built for other points; if a position is not finite, or the positions extend
            so far that squared distances overflow.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> radius(x, torch.tensor([[2.5], [0.1]]), r=1.0)
        tensor([[0, 1, 1],
                [2, 0, 1]])
    """
    r, cap = check_radius(r), -1
    if max_num_neighbors is not None:
        cap = check_int("max_num_neighbors", max_num_neighbors, 1, maximum=MANY)
    clouds = (batch_x, batch_y, ptr_x, ptr_y)
    return torch.ops.erwin.cross_radius(*cross_args(x, y, *clouds, tree), r, cap)
