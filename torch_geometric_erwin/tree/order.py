r"""The order of rows in a tree, which depends on the positions."""

from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from torch_geometric_erwin import _native
from torch_geometric_erwin.utils.rows import (
    put_rows,
    read_rows,
    segment_ids,
    take_rows,
)

TIES = ("index", "coordinates")


class Order(NamedTuple):
    r"""Where the rows of a batch come from.

    Args:
        perm: The node of the batch in every row of level 0.
        perm_rot: Per level, the row of the level at every place of the rotated tree.
        num_nodes: The number of nodes :math:`N`.
        repeats: Whether a node may have more than one row.

    Shapes:
        - **perm:** :math:`(N_0)`; **perm_rot:** :math:`(N_l)` each, int64.
    """

    perm: Tensor
    perm_rot: tuple[Tensor, ...]
    num_nodes: int
    repeats: bool

    @classmethod
    def of(
        cls,
        perm: Tensor,
        perm_rot: tuple[Tensor, ...],
        level: Tensor,
        ptr: Tensor,
        num_nodes: int,
        repeats: bool,
    ) -> "Order":
        r"""Returns the order of a batch, from orders that are counted in clouds.

        Args:
            perm: The node in every row of level 0, counted in its own cloud.
            perm_rot: Per level, the row at every place of the rotated tree.
            level: The number of rows of every cloud on every level.
            ptr: The offsets of the clouds among the nodes.
            num_nodes: The number of nodes :math:`N`.
            repeats: Whether a node may have more than one row.
        """
        # Computed in one go for all levels: on a GPU a launch for each would take
        # longer than the computation.
        perms = (perm, *perm_rot)
        start, rows = [ptr[:-1]], level.t()[: max(1, len(perm_rot))]
        lengths = [rows[0]]
        if perm_rot:
            start.append((rows.cumsum(1) - rows).flatten())
            lengths.append(rows.flatten())
        sizes = [own.size(0) for own in perms]
        segment = segment_ids(torch.cat(lengths), sum(sizes))
        main, *rotated = (torch.cat(perms) + torch.cat(start)[segment]).split(sizes)
        return cls(main, tuple(rotated), num_nodes, repeats)

    def to_rows(self, x: Tensor) -> Tensor:
        r"""Brings entries of nodes into the order of rows.

        Shapes:
            - **x:** :math:`(N, *)`; **output:** :math:`(N_0, *)`.
        """
        if self.repeats:
            return read_rows(x, self.perm)
        return take_rows(x, self.perm)

    def to_nodes(self, rows: Tensor) -> Tensor:
        r"""Brings entries of rows into the order of nodes.

        If a node has several rows, the entry of the first one is taken.

        Shapes:
            - **rows:** :math:`(N_0, *)`; **output:** :math:`(N, *)`.
        """
        if not self.repeats:
            return put_rows(rows, self.perm, self.num_nodes)
        return take_rows(rows, self.row_of_node())

    def row_of_node(self) -> Tensor:
        r"""Returns the first row of every node.

        Shapes:
            - **output:** :math:`(N)`.
        """
        rows = torch.arange(self.perm.size(0), device=self.perm.device)
        if not self.repeats:
            return put_rows(rows, self.perm, self.num_nodes)
        first = self.perm.new_zeros(self.num_nodes)
        return first.scatter_reduce(0, self.perm, rows, "amin", include_self=False)


def coordinate_order(pos: Tensor, ptr: Tensor) -> Tensor:
    r"""Sorts the nodes of every cloud by their coordinates and then by their number.

    Args:
        pos: The node positions.
        ptr: The row offsets of the clouds.

    Shapes:
        - **pos:** :math:`(N, D)`; **ptr:** :math:`(G + 1)`; **output:** :math:`(N)`.

    Example:
        >>> coordinate_order(torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([0, 3]))
        tensor([1, 2, 0])
    """
    # Stable sorts from the last axis to the first, then by cloud.
    ptr = ptr.to(pos.device)
    order = torch.arange(pos.size(0), device=pos.device)
    for axis in reversed(range(pos.size(1))):
        order = order[torch.sort(pos[order, axis], stable=True).indices]
    cloud = segment_ids(ptr[1:] - ptr[:-1], pos.size(0))
    return order[torch.sort(cloud[order], stable=True).indices]


def wrong_order(
    perm: Tensor,
    perm_rot: tuple[Tensor, ...],
    mask: Optional[Tensor],
    level: Tensor,
    ptr: Tensor,
) -> str:
    r"""Says what is wrong with the order of a tree's rows; empty if nothing is.

    Args:
        perm: The point of every row, counted in its own cloud, on the host.
        perm_rot: Per level, the row at every place of the rotated tree.
        mask: For a tree that repeats points, :obj:`False` for rows that do so.
        level: The number of rows of every cloud on every level.
        ptr: The row offsets of the clouds.
    """
    # By NumPy, which uses no threads: PyTorch's do not exist in a forked process.
    level = level.t().contiguous()
    orders = [("perm", perm, level[0])]
    if mask is not None:
        kept, rows = mask.numpy(), perm.numpy()
        ends = np.concatenate([[0], kept.cumsum()])
        if not np.array_equal(ends[[0, *level[0].cumsum(0)]], ptr):
            return "'mask' does not keep a row for every node"
        if (rows[1:] != rows[:-1])[~kept[1:]].any():
            return "'mask' hides rows that do not repeat the one before them"
        orders = [("perm", torch.from_numpy(rows[kept]), ptr.diff())]
    for l, rotated in enumerate(perm_rot):
        orders.append((f"perm_rot_{l}", rotated, level[l]))
    for name, permutation, lengths in orders:
        cloud = _native.no_permutation(permutation.contiguous(), lengths)
        if cloud is not None:
            return f"'{name}' is not a permutation of the rows of cloud {cloud}"
    return ""
