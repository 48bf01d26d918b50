r"""Whether the edges of coarse levels were made from given edges between nodes."""

from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor

from torch_geometric_erwin.tree.edges import RowEdges, renumbered
from torch_geometric_erwin.tree.validation import OTHER_EDGES
from torch_geometric_erwin.utils.checks import is_readable
from torch_geometric_erwin.utils.rows import segment_ids

if TYPE_CHECKING:
    from torch_geometric_erwin.tree.tree import Tree


def check_same_edges(
    tree: "Tree", edge_index: Tensor, edge_attr: Optional[Tensor] = None
) -> None:
    r"""Checks that a tree's own edges were made from these, where that does not wait
    for a GPU.

    Args:
        tree: The tree.
        edge_index: Edges between rows of level 0.
        edge_attr: Their features.

    Raises:
        ValueError: If they were made from other edges, or other features.
    """
    code = tree.edge_code
    if not tree.edges or code is None:
        return
    if not (is_readable(edge_index) and is_readable(code)):
        return
    own = edge_code(edge_index, tree.level[:, 0])
    wrong = (own != code).any(1) & (code[:, 0] >= 0)
    if bool(wrong.any()):
        cloud = int(wrong.nonzero()[0])
        has, had = int(own[cloud, 0]), int(code[cloud, 0])
        raise ValueError(
            f"the tree does not fit its data: the {has} edges of cloud {cloud} are "
            f"not the {had} that the tree was given; {OTHER_EDGES}"
        )
    if edge_attr is None or not tree.edge_means or not is_readable(edge_attr):
        return
    parent = segment_ids(tree.group_len[0], tree.num_rows(0))
    edges = RowEdges(renumbered(edge_index, parent), edge_attr)
    means = RowEdges(tree.edges[0], tree.edge_means[0])
    if not same_means(edges, means, tree.num_rows(1)):
        raise ValueError(
            "the tree does not fit its data: the values of 'edge_attr' are not "
            f"those that the tree was given; {OTHER_EDGES}"
        )


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
