r"""The levels of a tree, in the form that layers take."""

from typing import TYPE_CHECKING, Optional

from torch import Tensor
from torch.nn.functional import pad

from torch_geometric_erwin.tree.edge_check import check_same_edges
from torch_geometric_erwin.tree.edges import RowEdges, renumbered
from torch_geometric_erwin.tree.level import Level
from torch_geometric_erwin.tree.order import Order
from torch_geometric_erwin.utils.centre import centre_dense

if TYPE_CHECKING:
    from torch_geometric_erwin.tree.tree import Tree


def levels_of(
    tree: "Tree",
    order: Order,
    pos: Tensor,
    edge_index: Optional[Tensor] = None,
    edge_attr: Optional[Tensor] = None,
    levels: Optional[int] = None,
) -> tuple[Level, ...]:
    r"""Returns :meth:`Tree.levels` for a caller that has the order already, and checked
    what it got.

    Args:
        tree: The tree.
        order: Its order.
        pos: The node positions.
        edge_index: Edges between nodes.
        edge_attr: The features of the edges.
        levels: The number of levels, from the finest on. (default: all)

    Raises:
        ValueError: If the tree's own edges were made from other ones.
    """
    pos = order.to_rows(pos)
    if edge_index is not None:
        rows = order.row_of_node()
        check_same_edges(tree, RowEdges(edge_index, edge_attr), rows)
        edge_index = renumbered(edge_index, rows)
    edges = [edge_index, *tree.edges]
    means = [edge_attr, *tree.edge_means]
    out = []
    # Computed in one go for all levels: on a GPU a launch for each would take longer
    # than the computation.
    ptrs = pad(tree.level.t().cumsum(1), (1, 0)).unbind()
    config = tree.config
    for l, size in enumerate(config.ball_sizes[:levels]):
        groups = children = None
        if l > 0:
            groups = tree.group_len[l - 1]
            children, pos = centre_dense(pos, groups, config.strides[l - 1])
        level = Level.of(
            *(pos, ptrs[l], tree.ball_len[l], size),
            order.perm_rot[l] if order.perm_rot else None,
            group_len=groups,
            children=children,
            real=tree.real_rows(l),
            edge_index=edges[l] if l < len(edges) else None,
            edge_attr=means[l] if l < len(means) else None,
            node=order.perm if l == 0 else None,
            runs=dict(zip(config.runs_of(l), tree.runs[l] if tree.runs else ())),
        )
        out.append(level)
    return tuple(out)
