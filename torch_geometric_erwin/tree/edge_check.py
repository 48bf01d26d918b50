r"""Whether the edges of coarse levels were made from given edges between nodes.

The check runs in every forward pass on a CPU, so it must take little time: it reads all
edges twice, and once more to compare features. All else is per node.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_geometric_erwin.tree.edges import RowEdges, renumbered
from torch_geometric_erwin.tree.validation import OTHER_EDGES
from torch_geometric_erwin.utils.checks import is_readable

if TYPE_CHECKING:
    from torch_geometric_erwin.tree.tree import Tree


def check_same_edges(tree: "Tree", edges: RowEdges, rows: Tensor) -> None:
    r"""Checks that a tree's own edges were made from these, where that does not wait
    for a GPU.

    Args:
        tree: The tree.
        edges: Edges between nodes.
        rows: The row of every node on level 0.

    Raises:
        ValueError: If they were made from other edges, or other features.
    """
    code, (edge_index, edge_attr) = tree.edge_code, edges
    if not tree.edges or code is None:
        return
    if not (is_readable(edge_index) and is_readable(code)):
        return
    lengths = tree.level[:, 0]
    wrong = (_checksums(edge_index, rows, lengths) != code[:, 1]) & (code[:, 0] >= 0)
    if bool(wrong.any()):
        cloud = int(wrong.nonzero()[0])
        has, had = edge_code(edge_index, rows, lengths)[cloud, 0], code[cloud, 0]
        raise ValueError(
            f"the tree does not fit its data: the {int(has)} edges of cloud {cloud} "
            f"are not the {int(had)} that the tree was given; {OTHER_EDGES}"
        )
    if edge_attr is None or not tree.edge_means or not is_readable(edge_attr):
        return
    # On the host this takes less time than `segment_ids`.
    parent = torch.arange(tree.num_rows(1), device=rows.device)
    parent = parent.repeat_interleave(tree.group_len[0])
    means = RowEdges(tree.edges[0], tree.edge_means[0])
    if not same_means(edges, parent.index_select(0, rows), means, tree.level[:, 1]):
        raise ValueError(
            "the tree does not fit its data: the values of 'edge_attr' are not "
            f"those that the tree was given; {OTHER_EDGES}"
        )


def edge_code(edge_index: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
    r"""Returns numbers by which edges that were changed are told from those before.

    They depend neither on the order of the edges nor on how clouds are batched.

    Args:
        edge_index: Edges between nodes.
        rows: The row of every node on level 0.
        lengths: The number of rows of every cloud.

    Shapes:
        - **edge_index:** :math:`(2, E)`; **rows:** :math:`(N)`; **lengths:**
          :math:`(G)`; **output:** :math:`(G, 2)`, the number of edges of every cloud
          and a checksum of them.

    Example:
        >>> edges, rows = torch.tensor([[0, 1], [1, 2]]), torch.arange(3)
        >>> code = edge_code(edges, rows, torch.tensor([3]))
        >>> torch.equal(edge_code(edges.flip(1), rows, torch.tensor([3])), code)
        True
        >>> torch.equal(edge_code(edges.flip(0), rows, torch.tensor([3])), code)
        False
    """
    cloud = _cloud(rows, lengths).index_select(0, edge_index[0])
    count = torch.bincount(cloud, minlength=lengths.size(0))
    return torch.stack([count, _checksums(edge_index, rows, lengths)], dim=1)


def same_means(
    edges: RowEdges, rows: Tensor, means: RowEdges, lengths: Tensor, sample: int = 32
) -> bool:
    r"""Whether the features of merged edges are the means of those of other edges.

    Those are looked at that begin at some of the rows, at least one in every cloud, and
    means may differ by a hundredth of the features' size.

    Args:
        edges: The edges, between nodes.
        rows: The row of every node on a coarse level.
        means: What :func:`merged` returned for the edges between rows of that level.
        lengths: The number of rows of every cloud.
        sample: At how many rows they begin, at most, beside one in every cloud.

    Example:
        >>> from torch_geometric_erwin.tree.edges import merged
        >>> edges = RowEdges(torch.tensor([[0, 0], [1, 1]]), torch.rand(2, 3))
        >>> two, mean = torch.tensor([2]), merged(edges, num_rows=2)
        >>> other = edges._replace(edge_attr=edges.edge_attr + 0.1)
        >>> [same_means(e, torch.arange(2), mean, two) for e in (edges, other)]
        [True, False]
    """
    values, stored = edges.edge_attr, means.edge_attr
    if values is None or stored is None or values.size(1) != stored.size(1):
        return values is None and stored is None
    source, num_rows = means.edge_index[0].contiguous(), int(lengths.sum())
    if source.size(0) == 0:
        return True
    first = torch.searchsorted(source, lengths.cumsum(0) - lengths)
    begin = source[:: -(-source.size(0) // sample)]
    begin = torch.cat([begin, source[first.clamp(max=source.size(0) - 1)]])
    is_seen = torch.zeros(num_rows, dtype=torch.bool, device=rows.device)
    is_seen = is_seen.index_fill(0, begin, True)
    seen = is_seen.index_select(0, rows).index_select(0, edges.edge_index[0])
    seen = seen.nonzero().flatten()
    # Sums over the edges that became one, of features and of their sizes, by the place
    # of that one. Edges from a row to itself, which became none, get the last place.
    kept = is_seen.index_select(0, source).nonzero().flatten()
    wanted = _key(means.edge_index.index_select(1, kept), num_rows)  # ascends
    between = renumbered(edges.edge_index.index_select(1, seen), rows)
    key = _key(between, num_rows)
    place = torch.searchsorted(wanted, key).clamp(max=wanted.size(0) - 1)
    place = torch.where(wanted.index_select(0, place) == key, place, wanted.size(0))
    found = values.detach().index_select(0, seen).double()
    found = torch.cat([found, found.abs(), torch.ones_like(found)], dim=1)
    sums = found.new_zeros(wanted.size(0) + 1, found.size(1)).index_add(0, place, found)
    total, size, count = sums[:-1].split([values.size(1)] * 3, dim=1)
    stored = stored.detach().index_select(0, kept).double()
    # Data may have been in another dtype when its tree was built.
    rounding = max(0.01, 32 * torch.finfo(values.dtype).eps)
    # Not the other way round, so that `nan` differs from everything.
    return bool(((total - stored * count).abs() <= rounding * size).all())


def _key(edge_index: Tensor, num_rows: int) -> Tensor:
    return edge_index[0] * num_rows + edge_index[1]


def _cloud(rows: Tensor, lengths: Tensor) -> Tensor:
    return torch.searchsorted(lengths.cumsum(0), rows, right=True)


def _checksums(edge_index: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
    # Returns a number of 31 bits per cloud, which data stores in int32: the sum over
    # its edges of the product of two random numbers, one for each end. Integers wrap
    # around, so that the sum is the same in any order.
    cloud = _cloud(rows, lengths)
    place = rows - (lengths.cumsum(0) - lengths).index_select(0, cloud)
    ends = _random(2 * place + 1).index_select(0, edge_index[1])
    total = torch.zeros_like(rows).scatter_add(0, edge_index[0], ends)
    total = total * _random(2 * place)
    total = lengths.new_zeros(lengths.size(0)).scatter_add(0, cloud, total)
    return _shifted(total, 33)


def _random(number: Tensor) -> Tensor:
    # Spreads the bits of a number over all 64, as the generator SplitMix64 does.
    bits = (number + 1) * -7046029254386353131
    bits = (bits ^ _shifted(bits, 30)) * -4658895280553007687
    bits = (bits ^ _shifted(bits, 27)) * -7723592293110705685
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    # To the right, with zeros in front also for negative numbers.
    return (bits >> places) & ((1 << (64 - places)) - 1)
