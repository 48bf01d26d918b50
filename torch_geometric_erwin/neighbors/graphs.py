r"""Graphs among the points of one set."""

from typing import Any, Optional

import torch
from torch import Tensor

from torch_geometric_erwin.neighbors.search import (
    MANY,
    check_extent,
    check_place,
    tree_args,
)
from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_flag,
    check_int,
    check_pos,
    check_radius,
)

FLOWS = ("source_to_target", "target_to_source")


def knn_graph(
    pos: Tensor,
    k: int,
    batch: Optional[Tensor] = None,
    loop: bool = False,
    flow: str = "source_to_target",
    *,
    ptr: Optional[Tensor] = None,
    tree: Optional[Tree] = None,
) -> Tensor:
    r"""Connects every node to its :obj:`k` nearest nodes of the same cloud.

    The search is exact. The result is the same on every device and for every number of
    threads: of nodes at the same distance, the one with the lower index counts as
    nearer. Squared distances are computed in the dtype of the positions, or in float32
    for float16 and bfloat16. Positions get no gradient. Squares of distances below
    about 1e-19 (float64: 1e-154) lose precision or become zero: rescale such positions.

    Args:
        pos: The node positions, on the CPU or a CUDA device.
        k: The number of neighbours. A node of a smaller cloud is connected to all of
            its cloud.
        batch: The cloud of every node, ascending, as :obj:`batch.batch` of a PyG batch.
            (default: the clouds of the tree, or one cloud)
        loop: Whether a node is its own neighbour. Other nodes at the same position
            always are.
        flow: :obj:`"source_to_target"`, or :obj:`"target_to_source"` to swap the rows.
        ptr: The row offsets of the clouds, as :obj:`batch.ptr`, in place of
            :obj:`batch`.
        tree: A tree of the positions with the balanced layout, which is searched in
            place of a new one; the result is the same.

    Shapes:
        - **pos:** :math:`(N, D)` with any :math:`D \geq 1`, in any unit of length.
        - **batch:** :math:`(N)`, int64.
        - **ptr:** :math:`(G + 1)`, int64.
        - **output:** :math:`(2, E)`, int64: the neighbours in the first row, nearest
          first, of the ascending nodes in the second.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument is malformed, on another device, or the tree was
            built for other nodes; if a position is not finite, or the positions extend
            so far that squared distances overflow.

    Example:
        >>> knn_graph(torch.tensor([[0.0], [1.0], [3.0]]), k=1)
        tensor([[1, 0, 1],
                [0, 1, 2]])
    """
    k, loop = check_int("k", k, 1, maximum=MANY), check_flag("loop", loop)
    check_choice("flow", flow, FLOWS)
    search = _checked(pos, batch, ptr, tree)
    return _directed(torch.ops.erwin.knn(*search, k, loop), flow)


def radius_graph(
    pos: Tensor,
    r: float,
    batch: Optional[Tensor] = None,
    loop: bool = False,
    max_num_neighbors: Optional[int] = None,
    flow: str = "source_to_target",
    *,
    ptr: Optional[Tensor] = None,
    tree: Optional[Tree] = None,
) -> Tensor:
    r"""Connects every node to the nodes of the same cloud within a distance.

    The search is exact. The result is the same on every device and for every number of
    threads. Neighbours are those with :math:`d^2 \leq r^2`. Both squares are computed
    in the dtype of the positions, or in float32 for float16 and bfloat16. Positions get
    no gradient. Squares of distances below about 1e-19 (float64: 1e-154) lose precision
    or become zero: rescale such positions.

    Args:
        pos: The node positions, on the CPU or a CUDA device.
        r: The distance, in the unit of the positions.
        batch: The cloud of every node, ascending, as :obj:`batch.batch` of a PyG batch.
            (default: the clouds of the tree, or one cloud)
        loop: Whether a node is its own neighbour. Other nodes at the same position
            always are.
        max_num_neighbors: Keeps this many of a node's neighbours, the nearest ones; of
            nodes at the same distance, the one with the lower index counts as nearer.
            (default: all)
        flow: :obj:`"source_to_target"`, or :obj:`"target_to_source"` to swap the rows.
        ptr: The row offsets of the clouds, as :obj:`batch.ptr`, in place of
            :obj:`batch`.
        tree: A tree of the positions with the balanced layout, which is searched in
            place of a new one; the result is the same.

    Shapes:
        - **pos:** :math:`(N, D)` with any :math:`D \geq 1`, in any unit of length.
        - **batch:** :math:`(N)`, int64.
        - **ptr:** :math:`(G + 1)`, int64.
        - **output:** :math:`(2, E)`, int64: the neighbours in the first row, nearest
          first, of the ascending nodes in the second.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument is malformed, on another device, or the tree was
            built for other nodes; if a position is not finite, or the positions extend
            so far that squared distances overflow.

    Example:
        >>> radius_graph(torch.tensor([[0.0], [1.0], [3.0]]), r=2.0)
        tensor([[1, 0, 2, 1],
                [0, 1, 1, 2]])
    """
    r, loop = check_radius(r), check_flag("loop", loop)
    cap = -1
    if max_num_neighbors is not None:
        cap = check_int("max_num_neighbors", max_num_neighbors, 1, maximum=MANY)
    check_choice("flow", flow, FLOWS)
    search = _checked(pos, batch, ptr, tree)
    return _directed(torch.ops.erwin.radius(*search, r, cap, loop), flow)


def _checked(
    pos: Tensor, batch: Optional[Tensor], ptr: Optional[Tensor], tree: Optional[Tree]
) -> tuple[Any, ...]:
    pos = check_pos(pos, values=False)  # the operators check the values
    check_place(pos=pos)
    check_extent(pos=pos)
    return tree_args(pos, batch, ptr, tree)


def _directed(edge_index: Tensor, flow: str) -> Tensor:
    return edge_index if flow == "source_to_target" else edge_index.flip(0)
