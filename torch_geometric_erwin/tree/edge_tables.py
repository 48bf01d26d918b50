r"""Edges of coarse levels as tables, as data stores them."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin.utils.rows import segment_ids


def edge_tables(
    edges: Sequence[Tensor],
    means: Sequence[Tensor],
    level: Tensor,
    code: Optional[Tensor] = None,
) -> dict[str, Tensor]:
    r"""Returns edges as tables of which every cloud has its own part, one after the
    other.

    :obj:`tree_edge_{l}` :math:`(E_l, 2)` has rows counted in their own cloud,
    :obj:`tree_edge_attr_{l}` :math:`(E_l, F)` the features, if there are any, and
    :obj:`tree_edge_count` :math:`(G, L + 2)` the number of edges of every cloud on
    every coarse level, and its :attr:`Tree.edge_code`.

    Args:
        edges: Per coarse level, the edges between its rows, sorted.
        means: Per coarse level, their features; empty if they have none.
        level: The number of rows of every cloud on every level.
        code: The numbers of :attr:`Tree.edge_code` for the edges between nodes.

    Raises:
        ValueError: If an edge connects two clouds.

    Example:
        >>> edges = [torch.tensor([[0, 2], [1, 3]])]
        >>> code = torch.tensor([[3, 17], [2, 31]])
        >>> tables = edge_tables(edges, [], torch.tensor([[4, 2], [3, 2]]), code)
        >>> tables["tree_edge_1"].tolist(), tables["tree_edge_count"].tolist()
        ([[0, 1], [0, 1]], [[1, 3, 17], [1, 2, 31]])
    """
    tables, counts = {}, []
    for l, edge_index in enumerate(edges, 1):
        rows = level[:, l]
        ends = rows.cumsum(0)
        cloud = torch.searchsorted(ends, edge_index, right=True)
        if bool((cloud[0] != cloud[1]).any()):
            raise ValueError(
                "'edge_index' must connect nodes of one cloud, for 'edges=True' (got "
                "an edge between two clouds)"
            )
        first = (ends - rows).index_select(0, cloud[0])
        tables[f"tree_edge_{l}"] = (edge_index - first).t().int().contiguous()
        counts.append(torch.bincount(cloud[0], minlength=len(rows)))
    for l, mean in enumerate(means, 1):
        tables[f"tree_edge_attr_{l}"] = mean
    if counts:
        if code is None:
            code = level.new_full((level.size(0), 2), -1)  # fits any edges
        tables["tree_edge_count"] = torch.cat([torch.stack(counts, 1), code], 1).int()
    return tables


def edges_of_table(table: Tensor, count: Tensor, rows: Tensor) -> Tensor:
    r"""Returns the edges of a level from :func:`edge_tables`.

    Args:
        table: The edges, with rows counted in their own cloud.
        count: The number of edges of every cloud.
        rows: The number of rows of every cloud.

    Shapes:
        - **table:** :math:`(E, 2)`; **count**, **rows:** :math:`(G)`; **output:**
          :math:`(2, E)`.

    Example:
        >>> table, two = torch.tensor([[0, 1], [0, 1]]), torch.tensor([2, 2])
        >>> edges_of_table(table, torch.tensor([1, 1]), two).tolist()
        [[0, 2], [1, 3]]
    """
    cloud = segment_ids(count, table.size(0))
    first = (rows.cumsum(0) - rows).index_select(0, cloud)
    return (table + first[:, None]).t().contiguous()
