r"""Edges between the rows of a coarse level."""

from typing import TYPE_CHECKING, NamedTuple, Optional

import torch
from torch import Tensor

from torch_geometric_erwin.utils.checks import (
    check_edge_attr,
    check_edges,
    check_tensor,
)

if TYPE_CHECKING:
    from torch_geometric_erwin.tree.tree import Tree


class RowEdges(NamedTuple):
    r"""Edges between rows, and their features if they have any.

    Shapes:
        - **edge_index:** :math:`(2, E)`; **edge_attr:** :math:`(E, F)`.
    """

    edge_index: Tensor
    edge_attr: Optional[Tensor] = None


def checked_edges(
    edge_index: Tensor, edge_attr: Optional[Tensor], num_nodes: int
) -> RowEdges:
    r"""Checks edges and their features and returns them.

    Args:
        edge_index: The edges.
        edge_attr: Their features, if they have any.
        num_nodes: The number of nodes :math:`N`.

    Raises:
        TypeError: If a tensor has another kind of dtype.
        ValueError: If there is no such node, or not a row of features for every edge.

    Example:
        >>> checked_edges(torch.tensor([[0], [1]]), torch.rand(2, 3), num_nodes=2)
        Traceback (most recent call last):
        ValueError: 'edge_attr' must have shape [1, 3] (got [2, 3])
    """
    check_edges("edge_index", edge_index, num_nodes)
    if edge_attr is not None:
        check_tensor("edge_attr", edge_attr)
        columns = edge_attr.size(1) if edge_attr.dim() == 2 else 1
        size = edge_index.size(1)
        edge_attr = check_edge_attr("edge_attr", edge_attr, size, columns)
    return RowEdges(edge_index, edge_attr)


def merged(edges: RowEdges, num_rows: int) -> RowEdges:
    r"""Merges equal edges into one with the mean of their features.

    Edges from a row to itself are left out. The order of the others is that of
    :func:`torch_geometric.utils.coalesce`: by the first row, then by the second.

    Args:
        edges: The edges.
        num_rows: The number of rows :math:`N`.

    Example:
        >>> edge_index = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 1]])
        >>> edges = RowEdges(edge_index, torch.tensor([[5.0], [1.0], [2.0], [9.0]]))
        >>> [tensor.tolist() for tensor in merged(edges, num_rows=2)]
        [[[0, 1], [1, 0]], [[1.5], [5.0]]]
    """
    source, target = edges.edge_index
    kept = (source != target).nonzero().flatten()
    # One number per edge takes less time to sort than two.
    key = source.index_select(0, kept) * num_rows + target.index_select(0, kept)
    key, order = key.sort(stable=True)
    key, place, count = torch.unique_consecutive(
        key, return_inverse=True, return_counts=True
    )
    num_rows = max(num_rows, 1)
    edge_index = torch.stack([key // num_rows, key % num_rows])
    if edges.edge_attr is None:
        return RowEdges(edge_index)
    values = edges.edge_attr.index_select(0, kept.index_select(0, order))
    total = values.new_zeros(key.size(0), values.size(1)).index_add(0, place, values)
    return RowEdges(edge_index, total / count[:, None])


def renumbered(edge_index: Tensor, rows: Tensor) -> Tensor:
    r"""Returns edges in which every node is replaced by its row.

    Args:
        edge_index: Edges between nodes.
        rows: The row of every node.

    Shapes:
        - **edge_index** and **output:** :math:`(2, E)`; **rows:** :math:`(N)`.

    Example:
        >>> renumbered(torch.tensor([[0, 0], [1, 2]]), torch.tensor([7, 5, 6])).tolist()
        [[7, 7], [5, 6]]
    """
    # Not `rows[edge_index]`, which ignores a lazy negation of the edges.
    return rows.index_select(0, edge_index.flatten()).view_as(edge_index)


def edges_on_level(tree: "Tree", edges: RowEdges, level: int) -> RowEdges:
    r"""Returns the edges between the rows of a level; see :meth:`Tree.coarse_edges`.

    Args:
        tree: The tree.
        edges: Edges between nodes.
        level: The level.
    """
    rows = tree.row_of_node(level)
    edges = edges._replace(edge_index=renumbered(edges.edge_index, rows))
    return edges if level == 0 else merged(edges, tree.num_rows(level))
