r"""Graphs by exact neighbour search over a ball tree."""

from typing import Any, Optional

import torch
from torch import Tensor

import torch_geometric_erwin.ops.vmap  # noqa: F401  (registers the operators too)
from torch_geometric_erwin.ops.ball_tree_cuda import why_no_kernels
from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.tree.tree import check_tree
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_devices,
    check_flag,
    check_int,
    check_pos,
    check_ptr,
    check_radius,
    check_tensor,
    given_ptr,
    reads_values,
)

FLOWS = ("source_to_target", "target_to_source")

# The ball size of a tree that is built for a search. On the CPU the search descends to
# nodes of at most 16 points (csrc/cpu/neighbors.cpp), which balls of 16 points fill;
# balls of 8 to 12 points were 10 to 40 % slower in 3-D. On a GPU it descends to nodes
# of at most 32 points, which are two balls.
_BALL_SIZE = 16

# The largest number of neighbours that may be asked for; a large one means all.
_MANY = 2**63 - 1


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
    k, loop = check_int("k", k, 1, maximum=_MANY), check_flag("loop", loop)
    check_choice("flow", flow, FLOWS)
    search = _search_args(pos, batch, ptr, tree)
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
        cap = check_int("max_num_neighbors", max_num_neighbors, 1, maximum=_MANY)
    check_choice("flow", flow, FLOWS)
    search = _search_args(pos, batch, ptr, tree)
    return _directed(torch.ops.erwin.radius(*search, r, cap, loop), flow)


def _search_args(
    pos: Tensor, batch: Optional[Tensor], ptr: Optional[Tensor], tree: Optional[Tree]
) -> tuple[Any, ...]:
    # Returns the arguments that both operators share: positions, offsets and a tree.
    pos = check_pos(pos, values=False)  # the operators check the values
    if not torch.compiler.is_compiling():
        _check_device(pos.device)
        _check_extent(pos)
    # Values of offsets on a GPU are checked by the operators, which copy them to the
    # host anyway.
    on_host = pos.device.type == "cpu"
    if tree is not None:
        check_tree("tree", tree)
    num_clouds = 0
    if tree is not None and batch is not None:
        check_tensor("node_ptr", tree.node_ptr)
        num_clouds = tree.node_ptr.size(0) - 1
    ptr = given_ptr(batch, ptr, pos, num_clouds)
    if tree is None or ptr is not None:
        ptr = check_ptr(ptr, pos.size(0), pos.device, values=on_host)
    if tree is None:
        perm = torch.ops.erwin.ball_tree(pos, ptr, [_BALL_SIZE], [], 0.0, "balanced")[0]
        return pos, ptr, perm, [_BALL_SIZE], []
    config = tree.config
    if config.layout != "balanced":
        raise ValueError(
            f"'tree' must have layout='balanced' (got '{config.layout}'); without a "
            "tree, one is built for the search"
        )
    if ptr is None:
        check_tensor("node_ptr", tree.node_ptr)
        check_devices(pos=pos, tree=tree.node_ptr)
    values = on_host and not torch.compiler.is_compiling()
    tree.validate(pos.size(0), config, ptr, values)
    return (
        pos,
        tree.node_ptr if ptr is None else ptr,
        tree.perm,
        [*config.ball_sizes],
        [*config.strides],
    )


def _check_device(device: torch.device) -> None:
    kind, where = device.type, "the CPU or a CUDA device"
    if kind == "cuda":
        reason = why_no_kernels(device)
        if not reason:
            return
        where = f"the CPU: {reason}"
    if kind != "cpu":
        raise ValueError(
            f"'pos' must be on {where} (got {kind}); search in the transform, or copy "
            "the positions"
        )


@reads_values
def _check_extent(pos: Tensor) -> None:
    # Positions that are not finite are left to the operators, which name the row.
    def fits(extent: float) -> bool:
        return pos.size(1) * extent * extent <= torch.finfo(pos.dtype).max

    # The extent over all axes together takes less time, and nearly always fits.
    if pos.size(0) == 0 or fits(_extent(*torch.aminmax(pos))):
        return
    low, high = torch.aminmax(pos, dim=0)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        return
    extent = _extent(low, high)
    if not fits(extent):
        raise ValueError(
            f"'pos' has an extent of {extent:.3g}, whose square (times {pos.size(1)} "
            f"axes) overflows {pos.dtype}; the positions must be rescaled"
        )


def _extent(low: Tensor, high: Tensor) -> float:
    return float((high.double() - low.double()).max())


def _directed(edge_index: Tensor, flow: str) -> Tensor:
    return edge_index if flow == "source_to_target" else edge_index.flip(0)
