r"""Edges between the rows of a coarse level."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from torch_geometric_erwin.utils.checks import (
    check_edge_attr,
    check_edges,
    check_tensor,
)
from torch_geometric_erwin.utils.rows import segment_ids


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


def edge_code(edge_index: Tensor, rows: Tensor) -> Tensor:
    r"""Returns numbers by which edges that were changed are told from those before.

    They depend neither on the order of the edges nor on how clouds are batched.

    Args:
        edge_index: Edges between rows of level 0.
        rows: The number of rows of every cloud.

    Shapes:
        - **edge_index:** :math:`(2, E)`; **rows:** :math:`(G)`; **output:**
          :math:`(G, 2)`, the number of edges of every cloud and a checksum of them.

    Example:
        >>> edges, rows = torch.tensor([[0, 1], [1, 2]]), torch.tensor([3])
        >>> torch.equal(edge_code(edges, rows), edge_code(edges.flip(1), rows))
        True
        >>> torch.equal(edge_code(edges, rows), edge_code(edges.flip(0), rows))
        False
    """
    cloud = segment_ids(rows, int(rows.sum())).index_select(0, edge_index[0])
    first = (rows.cumsum(0) - rows).index_select(0, cloud)
    source, target = edge_index - first
    # Every edge becomes a number with random bits. Integers wrap around, so their sum
    # is the same in any order.
    bits = source * _MIX[0] + target * _MIX[1]
    bits = (bits ^ (bits >> 29)) * _MIX[2]
    bits = bits ^ (bits >> 32)
    total = bits.new_zeros(rows.size(0)).index_add(0, cloud, bits)
    count = torch.bincount(cloud, minlength=rows.size(0))
    return torch.stack([count, total & (2**31 - 1)], dim=1)


# Odd numbers with random bits.
_MIX = (-7046029254386353131, -4417276706812531889, -4658895280553007687)


def same_means(
    edges: RowEdges, means: RowEdges, num_rows: int, sample: int = 64
) -> bool:
    r"""Whether the features of merged edges are the means of those of other edges.

    Some of the merged edges are looked at, at equal distances in their list, and means
    may differ by a hundredth of the features' size.

    Args:
        edges: The edges, between rows of a coarse level.
        means: The edges that :func:`merged` returned.
        num_rows: The number of rows of the level.
        sample: How many edges are looked at, at most.

    Example:
        >>> edges = RowEdges(torch.tensor([[0, 0], [1, 1]]), torch.rand(2, 3))
        >>> mean = merged(edges, num_rows=2)
        >>> other = edges._replace(edge_attr=edges.edge_attr + 0.1)
        >>> same_means(edges, mean, 2), same_means(other, mean, 2)
        (True, False)
    """
    values, stored = edges.edge_attr, means.edge_attr
    if values is None or stored is None or values.size(1) != stored.size(1):
        return values is None and stored is None
    step, values_dtype = -(-stored.size(0) // sample) or 1, values.dtype
    stored = stored.detach()[::step].double()
    source, target = means.edge_index[:, ::step]
    wanted = source * num_rows + target  # ascends
    key = edges.edge_index[0] * num_rows + edges.edge_index[1]
    place = torch.searchsorted(wanted, key)
    hit = (wanted[place.clamp(max=len(wanted) - 1)] == key) if len(wanted) else key < 0
    place = place[hit]
    values = values.detach()[hit].double()
    sums = torch.zeros_like(stored).index_add(0, place, values)
    sizes = torch.zeros_like(stored).index_add(0, place, values.abs())
    count = torch.bincount(place, minlength=len(wanted))[:, None]
    # Data may have been in another dtype when its tree was built.
    rounding = max(0.01, 32 * torch.finfo(values_dtype).eps)
    # Not the other way round, so that `nan` differs from everything.
    return bool(((sums - stored * count).abs() <= rounding * sizes).all())


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
    every coarse level, and its :func:`edge_code`.

    Args:
        edges: Per coarse level, the edges between its rows, sorted.
        means: Per coarse level, their features; empty if they have none.
        level: The number of rows of every cloud on every level.
        code: The numbers of :func:`edge_code` for the edges between nodes.

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
